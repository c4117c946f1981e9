# SPDX-License-Identifier: Apache-2.0
# What a small guest starts with (tests/small_guest.py). A Multiboot header that QEMU takes too, then
# 64-bit mode at CPL 0: the low 4 GiB mapped onto themselves by 2 MiB pages (present, writable, user),
# CR4 = PAE, EFER = SCE | LME | NXE, CR0.WP set, no coprocessor or SSE state enabled, interrupts off and
# masked at the 8259s. A guest defines `test`; returning from it is success.
#
#   ATTEMPT instruction     do it; then `vector` is what it raised (-1: nothing), with `error`, `fault_rip`
#                           (RIP in the frame), `fault_flags`, `fault_cr2`; the instruction keeps all registers
#   REPORT name, operand    print "name=<hexadecimal>" on the console
#   VERDICT value           end with this exit value
#   call set_gate           IDT gate %edi (0 to 255) = an interrupt gate of DPL 3 to %rsi
#   go_user                 jump to it: runs %rdi at CPL 3 with stack `user_stack`; it ends by any exception
#                           inside ATTEMPT
#
# Selectors: 0x08 code, 0x10 data, 0x1b user data, 0x23 user code (as SYSRET wants them), 0x28 TSS.
        MULTIBOOT_HEADER
start:  mov     $stack, %esp
        mov     $directory, %edi                # 2,048 pages of 2 MiB
        mov     $0x87, %eax
        xor     %edx, %edx
1:      mov     %eax, (%edi)
        movl    $0, 4(%edi)
        add     $0x200000, %eax
        add     $8, %edi
        inc     %edx
        cmp     $2048, %edx
        jne     1b
        mov     $directory + 7, %eax
        mov     $pointers, %edi
2:      mov     %eax, (%edi)
        add     $0x1000, %eax
        add     $8, %edi
        cmp     $pointers + 32, %edi
        jne     2b
        movl    $pointers + 7, root
        mov     $0x20, %eax
        mov     %eax, %cr4
        mov     $root, %eax
        mov     %eax, %cr3
        mov     $0xC0000080, %ecx
        rdmsr
        or      $0x901, %eax
        wrmsr
        mov     $0x80010011, %eax
        mov     %eax, %cr0
        lgdt    gdt_pointer
        ljmp    $0x08, $long_mode

        .code64
long_mode:
        mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $stack, %rsp
        mov     $tss, %eax
        mov     %ax, gdt + 0x2A
        shr     $16, %eax
        mov     %al, gdt + 0x2C
        mov     $0x28, %eax
        ltr     %ax
        mov     $stubs, %esi
        xor     %edi, %edi
1:      call    set_gate
        add     $16, %rsi
        inc     %edi
        cmp     $256, %edi
        jne     1b
        lidt    idt_pointer
        RUN_TEST

set_gate:
        mov     %edi, %eax
        shl     $4, %eax
        mov     %si, idt(%rax)
        movl    $0xEE000008, idt + 2(%rax)
        movb    $0, idt + 4(%rax)
        movb    $0xEE, idt + 5(%rax)
        mov     %rsi, %rdx
        shr     $16, %rdx
        mov     %dx, idt + 6(%rax)
        shr     $16, %rdx
        mov     %rdx, idt + 8(%rax)
        ret

go_user:
        push    $0x1B
        push    $user_stack
        push    $2
        push    $0x23
        push    %rdi
        iretq

        STUBS   256

caught: pop     vector
        push    %rax
        mov     vector, %rax
        cmp     $21, %rax
        ja      1f
        bt      %rax, with_error                # vectors that push an error code
        jnc     1f
        pop     %rax
        pop     error
        push    %rax
1:      mov     8(%rsp), %rax
        mov     %rax, fault_rip
        mov     24(%rsp), %rax
        mov     %rax, fault_flags
        mov     %cr2, %rax
        mov     %rax, fault_cr2
        cmpq    $0, recover
        je      unexpected
        mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        pop     %rax
        mov     recover_stack, %rsp
        push    recover
        movq    $0, recover
        ret
unexpected:
        REPORT  unexpected_vector, vector
        REPORT  at, fault_rip
        VERDICT 0x12

print:  mov     (%rsi), %al                     # the text at %rsi, up to a zero byte
        test    %al, %al
        jz      1f
        SERIAL_OUT
        inc     %rsi
        jmp     print
1:      ret

report: call    print                           # the text at %rsi, then %rdi
        mov     $16, %ecx
1:      rol     $4, %rdi
        mov     %edi, %eax
        and     $15, %eax
        mov     digits(%rax), %al
        SERIAL_OUT
        dec     %ecx
        jnz     1b
        mov     $10, %al
        out     %al, %dx
        ret

        .data
        .balign 16
gdt:    .quad   0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF
        .quad   0x0000890000000067, 0, 0
gdt_pointer: .word . - gdt - 1
        .quad   gdt
idt_pointer: .word 4095
        .quad   idt
digits: .ascii  "0123456789abcdef"
with_error: .quad 1 << 8 | 0x1F << 10 | 1 << 17 | 1 << 21
vector: .quad   -1
error:  .quad   -1
fault_rip: .quad 0
fault_flags: .quad 0
fault_cr2: .quad 0
recover: .quad  0
recover_stack: .quad 0
        .balign 16
tss:    .long   0
        .quad   interrupt_stack, 0, 0
        .skip   76

        .bss
        .balign 4096
root:   .skip   4096
pointers: .skip 4096
directory: .skip 4 * 4096
idt:    .skip   4096
        .skip   8192
stack:  .skip   4096
interrupt_stack:
        .skip   4096
user_stack:
        .balign 4096
        .text
