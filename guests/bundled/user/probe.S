/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Instructions that are meant to fault. Each is a function of one argument (RDI); the label
 * NAME_at marks where the saved RIP must point: at the instruction for a fault, behind it for a
 * trap.
 */
    .macro case name
    .globl \name, \name\()_at
\name:
    .endm

    .text
case probe_read
probe_read_at:
    mov (%rdi), %rax
    ret
case probe_write
probe_write_at:
    movq $0x5a, (%rdi)
    ret
case probe_fetch                    /* RIP is the target itself */
probe_fetch_at:
    jmp *%rdi
case probe_update                   /* a read-modify-write is reported as a write */
probe_update_at:
    lock addq $1, (%rdi)
    ret
case probe_push                     /* a push through a bad stack pointer */
    mov %rdi, %rsp
probe_push_at:
    pushq $1
    ret
case probe_straddle                 /* two pages: CR2 is the first byte of the one that faults */
probe_straddle_at:
    mov -4(%rdi), %rax
    ret
case probe_divide
    mov $1, %eax
    xor %edx, %edx
    xor %ecx, %ecx
probe_divide_at:
    div %ecx
    ret
case probe_divide_overflow
    mov $1, %edx
    xor %eax, %eax
    mov $1, %ecx
probe_divide_overflow_at:
    div %ecx
    ret
case probe_breakpoint
    int3
probe_breakpoint_at:
    ret
case probe_undefined
probe_undefined_at:
    ud2
    ret
case probe_step                     /* TF set: the trap follows the instruction after POPF */
    pushfq
    orq $0x100, (%rsp)
    popfq
    nop
probe_step_at:
    nop
    ret
case probe_hlt
probe_hlt_at:
    hlt
    ret
case probe_cli
probe_cli_at:
    cli
    ret
case probe_in
    mov $0x3fd, %edx
probe_in_at:
    inb %dx, %al
    ret
case probe_out
    mov $0xf4, %edx
    mov $0x11, %eax
probe_out_at:
    outl %eax, %dx
    ret
case probe_read_cr3
probe_read_cr3_at:
    mov %cr3, %rax
    ret
case probe_invlpg
probe_invlpg_at:
    invlpg (%rdi)
    ret
case probe_rdmsr
    mov $0xc0000080, %ecx
probe_rdmsr_at:
    rdmsr
    ret
case probe_lidt
probe_lidt_at:
    lidt (%rdi)
    ret
case probe_int_kernel_gate          /* vector 0x20 is for the kernel only: #GP(vector * 8 + 2) */
probe_int_kernel_gate_at:
    int $0x20
    ret
case probe_int_page_fault
probe_int_page_fault_at:
    int $14
    ret
case probe_int_absent_gate          /* DPL is checked before the present bit */
probe_int_absent_gate_at:
    int $0x90
    ret
case probe_load_kernel_selector     /* DS := kernel data: #GP(selector) */
    mov $0x10, %eax
probe_load_kernel_selector_at:
    mov %eax, %ds
    ret
case probe_load_beyond_table
    mov $0x7fb, %eax
probe_load_beyond_table_at:
    mov %eax, %ds
    ret
case probe_load_absent              /* #NP(selector) */
    mov $0x43, %eax
probe_load_absent_at:
    mov %eax, %ds
    ret
case probe_load_absent_stack        /* #SS(selector) */
    mov $0x43, %eax
probe_load_absent_stack_at:
    mov %eax, %ss
    ret
case probe_load_null_stack          /* SS := 0 in ring 3: #GP(0) */
    xor %eax, %eax
probe_load_null_stack_at:
    mov %eax, %ss
    ret
case probe_far_return               /* to kernel code: #GP(selector) */
    pushq $0x08
    pushq $0
probe_far_return_at:
    lretq
case probe_sysret
probe_sysret_at:
    sysretq
    ret

    .section .note.GNU-stack, "", @progbits
