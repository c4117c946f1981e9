/* SPDX-License-Identifier: Apache-2.0 */
/* GDT, TSS and IDT: where the processor finds segments, stacks and the code of each vector. */
#include "kernel.h"
#include "processor.h"

#define GATE_INTERRUPT 0x8e
#define DPL_USER 0x60
#define DOUBLE_FAULT_STACK 1 /* IST index */

struct tss {
    u32 reserved0;
    u64 rsp[3];
    u64 reserved1;
    u64 ist[7]; /* IST1 is ist[0] */
    u64 reserved2;
    u16 reserved3, io_map;
} __attribute__((packed));

struct gate {
    u16 offset_low, selector;
    u8 ist, kind;
    u16 offset_middle;
    u32 offset_high, reserved;
};

struct table_pointer {
    u16 limit;
    u64 base;
} __attribute__((packed));

void load_tables(const struct table_pointer *gdt, const struct table_pointer *idt);

u64 kernel_rsp; /* for `syscall`, which switches no stack */
static struct tss tss;
static struct gate idt[256] __attribute__((aligned(16)));
static u8 double_fault_stack[PAGE_SIZE] __attribute__((aligned(16)));
static u64 gdt[GDT_ENTRIES] __attribute__((aligned(16))) = {
    0,
    0x00af9b000000ffff, /* 0x08 kernel code */
    0x00cf93000000ffff, /* 0x10 kernel data */
    0x00cffb000000ffff, /* 0x18 user code, 32 bits: SYSRET wants its place */
    0x00cff3000000ffff, /* 0x20 user data */
    0x00affb000000ffff, /* 0x28 user code */
    0, 0,               /* 0x30 TSS */
    0x00cf73000000ffff, /* 0x40 user data, not present */
};

void set_kernel_stack(u64 top)
{
    tss.rsp[0] = top;
    kernel_rsp = top;
}

static void set_gate(const char *stubs, u32 vector, u8 kind, u8 ist)
{
    u64 offset = (u64)stubs + vector * 16;
    idt[vector] = (struct gate){
        .offset_low = (u16)offset,
        .selector = KERNEL_CS,
        .ist = ist,
        .kind = kind,
        .offset_middle = (u16)(offset >> 16),
        .offset_high = (u32)(offset >> 32),
    };
}

void descriptors_initialize(const char *stubs)
{
    u64 base = (u64)&tss;
    tss.ist[DOUBLE_FAULT_STACK - 1] = (u64)double_fault_stack + sizeof(double_fault_stack);
    tss.io_map = sizeof(tss);
    gdt[TSS_SELECTOR / 8] = (sizeof(tss) - 1) | (base & 0xffffff) << 16 | 0x89ull << 40 |
                            (base >> 24 & 0xff) << 56;
    gdt[TSS_SELECTOR / 8 + 1] = base >> 32;
    for (u32 vector = 0; vector < VECTOR_IRQ_END; vector++)
        set_gate(stubs, vector, GATE_INTERRUPT, 0);
    set_gate(stubs, VECTOR_DOUBLE_FAULT, GATE_INTERRUPT, DOUBLE_FAULT_STACK);
    set_gate(stubs, VECTOR_BREAKPOINT, GATE_INTERRUPT | DPL_USER, 0);
    set_gate(stubs, VECTOR_CALL, GATE_INTERRUPT | DPL_USER, 0);
    struct table_pointer gdt_pointer = {sizeof(gdt) - 1, (u64)gdt};
    struct table_pointer idt_pointer = {sizeof(idt) - 1, (u64)idt};
    load_tables(&gdt_pointer, &idt_pointer);
}
