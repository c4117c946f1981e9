# SPDX-License-Identifier: Apache-2.0
# How a fuzzed guest begins (tests/fuzz/guest_image.py lays out the rest): to the mode that the page of
# parameters asks for, and into the first piece of code. Whatever exception or interrupt comes goes on with the
# next piece, so that one fault does not end it; after the last the guest reports success.
        .set    LOAD, 0x100000
        .set    PARAMETERS, LOAD + 0x1000
        .set    GDT, LOAD + 0x2000
        .set    IDT32, LOAD + 0x3000
        .set    IDT64, LOAD + 0x4000
        .set    IVT, LOAD + 0x5000
        .set    TSS, LOAD + 0x6000
        .set    STACK, LOAD + 0xF000
        .set    USER_STACK, LOAD + 0xE000
        .set    CODE, LOAD + 0x10000
        .set    PIECE_SHIFT, 7
        .set    MODE, PARAMETERS                # 0 real, 1 protected with 16-bit code, 2 with 32-bit code, 3 long
        .set    VALUE_CR4, PARAMETERS + 4
        .set    VALUE_CR3, PARAMETERS + 8
        .set    VALUE_EFER, PARAMETERS + 12
        .set    VALUE_CR0, PARAMETERS + 16
        .set    PIECES, PARAMETERS + 20
        .set    NEXT, PARAMETERS + 24
        .set    USER_FLAGS, PARAMETERS + 28     # RFLAGS of pieces at CPL 3
        .set    RINGS, PARAMETERS + 0x100       # a byte for each piece: not 0 at CPL 3
        .code32
        .text
header: .long   0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000)
        .long   header, LOAD, 0, 0, start
        .globl  start
start:  cld
        mov     $STACK, %esp
        mov     $CODE, %esi
        mov     $0x10000, %edi
        mov     $0x1000, %ecx
        rep movsl                               # for real mode: code at 1000:0000
        mov     $IVT, %esi
        xor     %edi, %edi
        mov     $0x100, %ecx
        rep movsl
        mov     $real, %esi
        mov     $0x8000, %edi
        mov     $0x80, %ecx
        rep movsl
        mov     PIECES, %eax
        mov     %eax, 0x7F14
        movl    $0, 0x7F10
        lgdt    gdt_pointer
        lidt    idt_pointer32
        cmpl    $0, MODE
        jne     1f
        lidt    idt_pointer16
        mov     $0x28, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        ljmp    $0x20, $0x8000
1:      mov     VALUE_CR4, %eax
        mov     %eax, %cr4
        mov     VALUE_CR3, %eax
        mov     %eax, %cr3
        mov     VALUE_EFER, %eax
        test    %eax, %eax
        jz      2f
        xor     %edx, %edx
        mov     $0xC0000080, %ecx
        wrmsr
2:      mov     VALUE_CR0, %eax
        mov     %eax, %cr0
        cmpl    $3, MODE
        je      3f
        ljmp    $0x08, $4f
3:      ljmp    $0x18, $5f
4:      mov     $0x38, %eax
        ltr     %ax
        jmp     resume32
        .code64
5:      lidt    idt_pointer64
        mov     $0x38, %eax
        ltr     %ax
        jmp     resume64

        .balign 16
gdt_pointer:   .word 0xFFF; .quad GDT
idt_pointer32: .word 0x7FF; .quad IDT32
idt_pointer64: .word 0xFFF; .quad IDT64
idt_pointer16: .word 0x3FF; .quad 0

        .code32
        .org    0x400
resume32:
        mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $STACK, %esp
        cld
        mov     NEXT, %eax
        cmp     PIECES, %eax
        jae     finish32
        incl    NEXT
        mov     RINGS(%eax), %bl
        shl     $PIECE_SHIFT, %eax
        cmpl    $1, MODE
        je      1f
        add     $CODE, %eax
        test    %bl, %bl
        jnz     2f
        jmp     *%eax
1:      pushl   $0x30
        pushl   %eax
        lret
2:      mov     $0x53, %ecx
        mov     %ecx, %ds
        mov     %ecx, %es
        push    %ecx
        pushl   $USER_STACK
        pushl   USER_FLAGS
        pushl   $0x4B
        pushl   %eax
        iret
finish32:
        mov     $0x10, %al
        out     %al, $0xF4
1:      hlt
        jmp     1b

        .code64
        .org    0x600
resume64:
        mov     $STACK, %esp
        cld
        mov     NEXT, %eax
        cmp     PIECES, %eax
        jae     finish64
        incl    NEXT
        mov     RINGS(%eax), %bl
        shl     $PIECE_SHIFT, %eax
        add     $CODE, %eax
        test    %bl, %bl
        jnz     2f
        jmp     *%rax
2:      mov     $0x53, %ecx
        push    %rcx
        mov     $USER_STACK, %ecx
        push    %rcx
        mov     USER_FLAGS, %ecx
        push    %rcx
        mov     $0x5B, %ecx
        push    %rcx
        push    %rax
        iretq
finish64:
        mov     $0x10, %al
        out     %al, $0xF4
1:      hlt
        jmp     1b

        .code16
        .org    0x800
real:   mov     %cr0, %eax                      # runs at 0x8000
        and     $0xFE, %al
        mov     %eax, %cr0
        ljmp    $0, $0x8020
        .org    0x820
resume16:
        cli
        cld
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7F00, %sp
        mov     0x7F10, %ax
        cmp     0x7F14, %ax
        jae     finish16
        incw    0x7F10
        shl     $PIECE_SHIFT, %ax
        mov     $0x1000, %bx
        push    %bx
        push    %ax
        mov     %bx, %ds
        lret
finish16:
        mov     $0x10, %al
        out     %al, $0xF4
1:      hlt
        jmp     1b
        .org    0x1000
