/* SPDX-License-Identifier: Apache-2.0 */
/* Instructions that are meant to fault in ring 0; see user/probe.S for the convention. */
    .macro case name
    .globl \name, \name\()_at
\name:
    .endm

    .text
case kernel_read
kernel_read_at:
    mov (%rdi), %rax
    ret
case kernel_write
kernel_write_at:
    movq $0x5a, (%rdi)
    ret
case kernel_fetch
kernel_fetch_at:
    jmp *%rdi
case kernel_divide
    mov $1, %eax
    xor %edx, %edx
    xor %ecx, %ecx
kernel_divide_at:
    div %ecx
    ret
case kernel_breakpoint
    int3
kernel_breakpoint_at:
    ret
case kernel_undefined
kernel_undefined_at:
    ud2
case kernel_gate
    int $0x80
kernel_gate_at:
    ret
case kernel_load_beyond_table
    mov $0x7f8, %eax
kernel_load_beyond_table_at:
    mov %eax, %ds
    ret
case kernel_load_absent
    mov $0x40, %eax
kernel_load_absent_at:
    mov %eax, %ds
    ret
case kernel_load_user_stack         /* DPL 3 in ring 0 */
    mov $0x20, %eax
kernel_load_user_stack_at:
    mov %eax, %ss
    ret
case kernel_far_return
    pushq $0x48                     /* beyond the table */
    pushq $0
kernel_far_return_at:
    lretq
case kernel_iret                    /* to ring 3 with a null stack segment */
    pushq $0
    pushq $0
    pushq $2
    pushq $0x2b
    pushq $0
kernel_iret_at:
    iretq
case kernel_lose_stack              /* #PF whose delivery faults: #DF, on a stack of its own */
    mov %rdi, %rsp
kernel_lose_stack_at:
    pushq $1
    ret

    .section .note.GNU-stack, "", @progbits
