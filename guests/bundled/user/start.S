/* SPDX-License-Identifier: Apache-2.0 */
/* The first bytes of the image: a jump, how many pages are code, and the dispatch by program. */
#include "common.h"

    .section .header, "ax"
    .globl start
start:
    jmp enter
    .balign 8
    .quad text_pages

    .text
enter:                              /* RDI = program, RSI, RDX, RCX, R8, R9 = its arguments */
    xor %ebp, %ebp
    call run_program
    mov %rax, %rdi
    mov $CALL_EXIT, %eax
    syscall
    ud2

/* void run_probe(void (*code)(u64), u64 argument): come back even if `code` faults for good. */
    .globl run_probe
run_probe:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    sub $8, %rsp
    mov %rdi, %rbx
    mov %rsi, %rbp
    lea 1f(%rip), %rdi
    mov %rsp, %rsi
    mov $CALL_ARM_PROBE, %eax
    syscall
    mov %rbp, %rdi
    call *%rbx
1:  add $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    .section .note.GNU-stack, "", @progbits
