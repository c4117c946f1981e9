# SPDX-License-Identifier: Apache-2.0
# The macros of small_guest.S, which explains them.
        .macro  ATTEMPT instruction:vararg
        push    %rax
        lea     9f(%rip), %rax
        mov     %rax, recover
        pop     %rax
        mov     %rsp, recover_stack
        movq    $-1, vector
        movq    $-1, error
        \instruction
9:      movq    $0, recover
        .endm

        .macro  REPORT name:req, value:req
        mov     \value, %rdi
        .section .rodata
8:      .asciz  "\name="
        .text
        lea     8b(%rip), %rsi
        call    report
        .endm

        .macro  VERDICT value:req
        mov     $\value, %al
        jmp     end
        .endm
