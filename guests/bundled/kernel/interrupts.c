/* SPDX-License-Identifier: Apache-2.0 */
/* The entry points, and what to do about each vector. */
#include "kernel.h"
#include "processor.h"

struct fixup {
    u64 fault, resume;
};

extern const char vector_stubs[];
extern const struct fixup fixups_start[], fixups_end[];
void run_kernel_probe_at(void (*code)(u64), u64 argument, u64 *resume);
void syscall_entry(void);
void interrupt_dispatch(struct frame *frame);

struct kernel_probe kernel_probe;

void interrupts_initialize(void)
{
    descriptors_initialize(vector_stubs);
    write_msr(MSR_EFER, EFER_SCE | EFER_LME | EFER_NXE);
    write_msr(MSR_STAR, (u64)(0x18 | 3) << 48 | (u64)KERNEL_CS << 32);
    write_msr(MSR_LSTAR, (u64)syscall_entry);
    write_msr(MSR_FMASK, FLAG_TRAP | FLAG_INTERRUPT | FLAG_DIRECTION | FLAG_NESTED |
                             FLAG_ALIGNMENT);
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
