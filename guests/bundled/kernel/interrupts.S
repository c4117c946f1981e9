/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every way into the kernel builds the same `struct frame` on the kernel stack, and every way out
 * takes it down again. Also: user accesses with a fix-up, the context switch, the kernel's probe.
 */
#include "layout.h"

    .macro push_registers
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    .endm

    .macro pop_registers
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    .endm

    /* With SMAP, user pages are out of reach except between these two. */
    .macro user_access_begin
    cmpb $0, smap_enabled(%rip)
    je .Lno_smap\@
    stac
.Lno_smap\@:
    .endm

    .macro user_access_end
    cmpb $0, smap_enabled(%rip)
    je .Lno_smap\@
    clac
.Lno_smap\@:
    .endm

    .text

/* One stub a vector, 16 bytes each. These vectors push an error code themselves. */
    .globl vector_stubs
    .align 16
vector_stubs:
    .set vector, 0
    .rept 256
    .align 16
    .if vector != 8 && vector != 10 && vector != 11 && vector != 12 && vector != 13 && \
        vector != 14 && vector != 17 && vector != 21
    pushq $0
    .endif
    pushq $vector
    jmp enter_kernel
    .set vector, vector + 1
    .endr

enter_kernel:
    push_registers
    cld
    user_access_end                 /* the user may have set AC */
    mov %rsp, %rdi
    call interrupt_dispatch
    .globl return_to_user
return_to_user:                     /* RSP = frame */
    pop_registers
    add $16, %rsp                   /* vector, error code */
    iretq

/* Interrupts are masked by FMASK; there is one processor, so plain variables do for the stacks. */
    .globl syscall_entry
syscall_entry:
    mov %rsp, user_rsp(%rip)
    mov kernel_rsp(%rip), %rsp
    pushq $USER_SS
    pushq user_rsp(%rip)
    pushq %r11                      /* RFLAGS */
    pushq $USER_CS
    pushq %rcx                      /* RIP */
    pushq $0
    pushq $VECTOR_SYSCALL
    push_registers
    mov %rsp, %rdi
    call syscall_dispatch
    cmpq $VECTOR_SYSCALL, 15 * 8(%rsp)
    jne return_to_user              /* a signal-like detour needs all registers */
    pop_registers
    mov 16(%rsp), %rcx
    mov 32(%rsp), %r11
    mov 40(%rsp), %rsp
    sysretq

    .data
    .align 8
user_rsp:
    .quad 0
    .globl kernel_rsp
kernel_rsp:
    .quad 0
    .text

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
