# SPDX-License-Identifier: Apache-2.0
# What a small guest of 32 bits starts with (tests/small_guest.py): a Multiboot header, then protected
# mode without paging at CPL 0, interrupts off. A guest defines `test`; returning from it is success.
#
#   ATTEMPT instruction     do it; then `vector` is what it raised (-1: nothing), with `error`
#   REPORT name, operand    print "name=<hexadecimal>" on the console
#   call set_gate           IDT gate %edi of type %eax (0x8E: interrupt gate, present) to selector %ecx,
#                           offset %esi
#
# Selectors: 0x08 code, 0x10 data, 0x18 TSS; 0x20 to 0x38 are the guest's own (`gdt`).
        .macro  ATTEMPT instruction:vararg
        movl    $9f, recover
        mov     %esp, recover_stack
        movl    $-1, vector
        movl    $-1, error
        \instruction
9:      movl    $0, recover
        .endm
        .macro  REPORT name:req, value:req
        mov     \value, %edi
        .section .rodata
8:      .asciz  "\name="
        .text
        mov     $8b, %esi
        call    report
        .endm
        .macro  DESCRIPTOR at:req, base:req, limit:req, high:req
        mov     $\base, %eax
        movw    $\limit, gdt + \at
        mov     %ax, gdt + \at + 2
        shr     $16, %eax
        mov     %al, gdt + \at + 4
        movw    $\high, gdt + \at + 5
        mov     %ah, gdt + \at + 7
        .endm

        MULTIBOOT_HEADER
start:  mov     $stack, %esp
        lgdt    gdt_pointer
        ljmp    $0x08, $1f
1:      mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     %eax, %fs
        mov     %eax, %gs
        DESCRIPTOR 0x18, tss, 103, 0x0089
        mov     $0x18, %eax
        ltr     %ax
        mov     $stubs, %esi
        xor     %edi, %edi
        mov     $8, %ecx
1:      mov     $0x8E, %eax
        call    set_gate
        add     $16, %esi
        inc     %edi
        cmp     $32, %edi
        jne     1b
        lidt    idt_pointer
        RUN_TEST

set_gate:
        mov     %si, idt(, %edi, 8)
        mov     %cx, idt + 2(, %edi, 8)
        movb    $0, idt + 4(, %edi, 8)
        mov     %al, idt + 5(, %edi, 8)
        mov     %esi, %edx
        shr     $16, %edx
        mov     %dx, idt + 6(, %edi, 8)
        ret

        STUBS   32

caught: pop     vector
        push    %eax
        mov     vector, %eax
        bt      %eax, with_error
        pop     %eax
        jnc     1f
        pop     error
1:      cmpl    $0, recover
        je      unexpected
        mov     recover_stack, %esp
        push    recover
        movl    $0, recover
        ret
unexpected:
        REPORT  unexpected_vector, vector
        REPORT  its_error, error
        mov     (%esp), %eax
        REPORT  at, %eax
        mov     $0x12, %al
        jmp     end

report: mov     (%esi), %al                     # the text at %esi, then %edi
        mov     $0x3F8, %edx
        test    %al, %al
        jz      1f
        out     %al, %dx
        inc     %esi
        jmp     report
1:      mov     $8, %ecx
2:      rol     $4, %edi
        mov     %edi, %eax
        and     $15, %eax
        mov     digits(%eax), %al
        out     %al, %dx
        dec     %ecx
        jnz     2b
        mov     $10, %al
        out     %al, %dx
        ret

        .data
        .balign 16
gdt:    .quad   0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0, 0, 0, 0, 0
gdt_pointer: .word . - gdt - 1
        .long   gdt
idt_pointer: .word 0x7FF
        .long   idt
digits: .ascii  "0123456789abcdef"
with_error: .long 1 << 8 | 0x1F << 10 | 1 << 17 | 1 << 21
vector: .long   -1
error:  .long   -1
recover: .long  0
recover_stack: .long 0
        .balign 16
tss:    .long   0, stack, 0x10
        .skip   92

        .bss
        .balign 4096
idt:    .skip   4096
        .skip   4096
stack:  .balign 4096
        .text
