/* SPDX-License-Identifier: Apache-2.0 */
/* triple, panic, spin: ends that a test of the virtual machine wants to see. */
#include "workloads.h"

void workload_triple(void)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) nothing = {0, 0};
    print("triple: loading an empty IDT");
    __asm__ volatile("lidt %0; ud2" : : "m"(nothing));
}

void workload_panic(void)
{
    fail("panic asked for", 0, 0, 0);
}

void workload_spin(void)
{
    print("spin: forever, with interrupts enabled");
    __asm__ volatile("sti");
    for (;;)
        __asm__ volatile("pause");
}
