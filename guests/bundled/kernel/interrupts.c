/* SPDX-License-Identifier: Apache-2.0 */
/* GDT, TSS, IDT, and what to do about each vector. */
#include "kernel.h"
#include "processor.h"

#define GATE_INTERRUPT 0x8e
#define DPL_USER 0x60
#define DOUBLE_FAULT_STACK 1 /* IST index */
#define VECTOR_IRQ_END 0x30

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

struct fixup {
    u64 fault, resume;
};

extern char vector_stubs[];
extern u64 kernel_rsp;
extern const struct fixup fixups_start[], fixups_end[];
void load_tables(const struct table_pointer *gdt, const struct table_pointer *idt);
void run_kernel_probe_at(void (*code)(u64), u64 argument, u64 *resume);
bool copy_user(void *to, const void *from, u64 length);
void interrupt_dispatch(struct frame *frame);

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

struct kernel_probe kernel_probe;

void set_kernel_stack(u64 top)
{
    tss.rsp[0] = top;
    kernel_rsp = top;
}

static void set_gate(u32 vector, u8 kind, u8 ist)
{
    u64 offset = (u64)vector_stubs + vector * 16;
    idt[vector] = (struct gate){
        .offset_low = (u16)offset,
        .selector = KERNEL_CS,
        .ist = ist,
        .kind = kind,
        .offset_middle = (u16)(offset >> 16),
        .offset_high = (u32)(offset >> 32),
    };
}

void interrupts_initialize(void)
{
    u64 base = (u64)&tss;
    tss.ist[DOUBLE_FAULT_STACK - 1] = (u64)double_fault_stack + sizeof(double_fault_stack);
    tss.io_map = sizeof(tss);
    gdt[TSS_SELECTOR / 8] = (sizeof(tss) - 1) | (base & 0xffffff) << 16 | 0x89ull << 40 |
                            (base >> 24 & 0xff) << 56;
    gdt[TSS_SELECTOR / 8 + 1] = base >> 32;
    for (u32 vector = 0; vector < VECTOR_IRQ_END; vector++)
        set_gate(vector, GATE_INTERRUPT, 0);
    set_gate(VECTOR_DOUBLE_FAULT, GATE_INTERRUPT, DOUBLE_FAULT_STACK);
    set_gate(VECTOR_BREAKPOINT, GATE_INTERRUPT | DPL_USER, 0);
    set_gate(VECTOR_CALL, GATE_INTERRUPT | DPL_USER, 0);
    struct table_pointer gdt_pointer = {sizeof(gdt) - 1, (u64)gdt};
    struct table_pointer idt_pointer = {sizeof(idt) - 1, (u64)idt};
    load_tables(&gdt_pointer, &idt_pointer);
}

bool user_range_valid(u64 address, u64 length)
{
    return address < USER_TOP && length <= USER_TOP - address;
}

bool copy_from_user(void *to, u64 from, u64 length)
{
    return user_range_valid(from, length) && copy_user(to, (const void *)from, length);
}

bool copy_to_user(u64 to, const void *from, u64 length)
{
    return user_range_valid(to, length) && copy_user((void *)to, from, length);
}

void run_kernel_probe(void (*code)(u64), u64 argument)
{
    kernel_probe.record = (struct fault_record){.vector = NO_FAULT};
    kernel_probe.armed = true;
    run_kernel_probe_at(code, argument, &kernel_probe.rip);
    kernel_probe.armed = false;
}

static struct fault_record record_of(const struct frame *frame, u64 address)
{
    return (struct fault_record){
        .vector = frame->vector,
        .error = frame->error,
        .address = frame->vector == VECTOR_PAGE_FAULT ? address : 0,
        .rip = frame->rip,
    };
}

_Noreturn static void panic(const struct frame *frame, u64 address)
{
    print("panic: vector %u error %x CR2 %x", frame->vector, frame->error, address);
    print("RIP %x CS %x RFLAGS %x", frame->rip, frame->cs, frame->rflags);
    print("RSP %x SS %x CR3 %x", frame->rsp, frame->ss, read_cr3());
    print("RAX %x RBX %x RCX %x", frame->rax, frame->rbx, frame->rcx);
    print("RDX %x RSI %x RDI %x", frame->rdx, frame->rsi, frame->rdi);
    print("RBP %x R8 %x R9 %x", frame->rbp, frame->r8, frame->r9);
    print("R10 %x R11 %x R12 %x", frame->r10, frame->r11, frame->r12);
    print("R13 %x R14 %x R15 %x", frame->r13, frame->r14, frame->r15);
    fail("kernel panic", frame->rip, 0, frame->vector);
}

/* A fault in the kernel: at a place prepared for it, or the end. */
static void kernel_exception(struct frame *frame, u64 address)
{
    for (const struct fixup *fixup = fixups_start; fixup < fixups_end; fixup++) {
        if (fixup->fault != frame->rip)
            continue;
        if (frame->vector == VECTOR_PAGE_FAULT && user_range_valid(address, 1) &&
            memory_resolve(current, address, frame->error))
            return;
        frame->rip = fixup->resume;
        return;
    }
    if (kernel_probe.armed) {
        kernel_probe.record = record_of(frame, address);
        kernel_probe.armed = false;
        frame->rip = kernel_probe.rip;
        frame->rsp = kernel_probe.rsp;
        frame->rflags &= ~(u64)(FLAG_ALIGNMENT | FLAG_TRAP);
        return;
    }
    panic(frame, address);
}

static void user_exception(struct frame *frame, u64 address)
{
    if (frame->vector == VECTOR_PAGE_FAULT && user_range_valid(address, 1) &&
        memory_resolve(current, address, frame->error))
        return;
    if (current->probe_rip) {
        current->fault = record_of(frame, address);
        frame->rip = current->probe_rip;
        frame->rsp = current->probe_rsp;
        frame->rflags &= ~(u64)FLAG_TRAP;
        current->probe_rip = 0;
        return;
    }
    process_killed(frame);
}

void interrupt_dispatch(struct frame *frame)
{
    u64 address = read_cr2();
    bool from_user = frame->cs & 3;
    if (frame->vector == VECTOR_CALL) {
        if (from_user)
            syscall_dispatch(frame);
        else
            kernel_exception(frame, 0);
    } else if (frame->vector == VECTOR_TIMER) {
        timer_interrupt();
        if (from_user)
            schedule();
    } else if (frame->vector >= VECTOR_TIMER && frame->vector < VECTOR_IRQ_END) {
        return; /* spurious (the lines are masked): no end of interrupt is due */
    } else if (from_user) {
        user_exception(frame, address);
    } else {
        kernel_exception(frame, address);
    }
}
