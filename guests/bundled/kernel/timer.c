/* SPDX-License-Identifier: Apache-2.0 */
/* Two 8259 interrupt controllers at vectors 0x20 and 0x28, and the 8254 at 100 Hz on line 0. */
#include "kernel.h"
#include "processor.h"

#define MASTER_COMMAND 0x20
#define MASTER_DATA 0x21
#define SLAVE_COMMAND 0xa0
#define SLAVE_DATA 0xa1
#define END_OF_INTERRUPT 0x20
#define PIT_CHANNEL_0 0x40
#define PIT_MODE 0x43
#define PIT_HZ 1193182
#define TICK_HZ 100

volatile u64 ticks;
static void (*tick_handler)(void);

void timer_initialize(void)
{
    out8(MASTER_COMMAND, 0x11); /* ICW1: edge-triggered, cascade, ICW4 follows */
    out8(SLAVE_COMMAND, 0x11);
    out8(MASTER_DATA, VECTOR_TIMER);
    out8(SLAVE_DATA, VECTOR_TIMER + 8);
    out8(MASTER_DATA, 0x04); /* the slave is on line 2 */
    out8(SLAVE_DATA, 0x02);
    out8(MASTER_DATA, 0x01); /* 8086 mode */
    out8(SLAVE_DATA, 0x01);
    out8(MASTER_DATA, 0xfe); /* the timer only */
    out8(SLAVE_DATA, 0xff);
    u16 count = PIT_HZ / TICK_HZ;
    out8(PIT_MODE, 0x34); /* channel 0, low then high byte, mode 2 */
    out8(PIT_CHANNEL_0, (u8)count);
    out8(PIT_CHANNEL_0, (u8)(count >> 8));
}

void timer_on_tick(void (*handler)(void))
{
    tick_handler = handler;
}

void timer_interrupt(void)
{
    ticks++;
    out8(MASTER_COMMAND, END_OF_INTERRUPT);
    if (tick_handler)
        tick_handler();
}
