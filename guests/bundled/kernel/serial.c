/* SPDX-License-Identifier: Apache-2.0 */
/* COM1, a 16550, output only, by polling. */
#include "kernel.h"
#include "processor.h"

#define COM1 0x3f8
#define LINE_STATUS (COM1 + 5)
#define TRANSMITTER_EMPTY 0x20

void serial_initialize(void)
{
    out8(COM1 + 1, 0x00); /* no interrupts */
    out8(COM1 + 3, 0x80); /* divisor latch: 115200 baud */
    out8(COM1 + 0, 0x01);
    out8(COM1 + 1, 0x00);
    out8(COM1 + 3, 0x03); /* 8 bits, no parity, one stop bit */
    out8(COM1 + 2, 0x07); /* FIFOs on and empty */
    out8(COM1 + 4, 0x03); /* DTR, RTS */
}

static void serial_put(char c)
{
    while (!(in8(LINE_STATUS) & TRANSMITTER_EMPTY))
        ;
    out8(COM1, (u8)c);
}

void serial_write(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '\n')
            serial_put('\r');
        serial_put(text[i]);
    }
}
