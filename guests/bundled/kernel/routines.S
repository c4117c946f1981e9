/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What C cannot say and nothing above it is needed for: user accesses with a fix-up, the way out
 * of the kernel, the context switch, the kernel's probe, the descriptor tables.
 */
#include "layout.h"
#include "registers.h"
#include "user_access.h"

    .text

/* Take a `struct frame` down and go where it says. */
    .globl return_to_user
return_to_user:                     /* RSP = frame */
    pop_registers
    add $16, %rsp                   /* vector, error code */
    iretq

/* bool copy_user(void *to, const void *from, u64 length): false if a page was not to be had. */
    .globl copy_user
copy_user:
    user_access_begin
    mov %rdx, %rcx
1:  rep movsb
    mov $1, %eax
2:  user_access_end
    ret
3:  xor %eax, %eax
    jmp 2b
    .section .fixups, "a"
    .quad 1b, 3b
    .text

/* void switch_context(u64 *save, u64 load): leave on one stack, return on another. */
    .globl switch_context
switch_context:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

/*
 * void run_kernel_probe_at(void (*code)(u64), u64 argument, u64 *resume): resume[0] = RIP and
 * resume[1] = RSP to go on with if `code` faults. Callee-saved registers survive.
 */
    .globl run_kernel_probe_at
run_kernel_probe_at:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    sub $8, %rsp
    lea 1f(%rip), %rax
    mov %rax, (%rdx)
    mov %rsp, 8(%rdx)
    mov %rdi, %rax
    mov %rsi, %rdi
    call *%rax
1:  add $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

/* void load_tables(const void *gdt, const void *idt): pointers of 10 bytes each. */
    .globl load_tables
load_tables:
    lgdt (%rdi)
    lidt (%rsi)
    mov $KERNEL_SS, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov $TSS_SELECTOR, %eax
    ltr %ax
    popq %rax
    pushq $KERNEL_CS
    pushq %rax
    lretq

    .section .note.GNU-stack, "", @progbits
