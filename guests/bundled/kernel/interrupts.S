/* SPDX-License-Identifier: Apache-2.0 */
/* Every way into the kernel builds the same `struct frame` on the kernel stack. */
#include "layout.h"
#include "registers.h"
#include "user_access.h"

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
    jmp return_to_user

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

    .section .note.GNU-stack, "", @progbits
