/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One loop of an instruction that a software processor does not execute inline, `count` times, for
 * bench/exits.py: LOOP says which (its number there). A Multiboot (version 1) ELF, so that memvirt
 * and QEMU both start it. Ends with a write to the debug-exit port: 0x10.
 */
        .set    FLAGS, 0
        .set    REGION, 0x1000000
        .set    REGION_BYTES, 0x2000000
        .section .text
        .code32
        .align  4
        .long   0x1BADB002, FLAGS, -(0x1BADB002 + FLAGS)
        .globl  _start
_start:
        cli
        mov     $stack_top, %esp
        /* Four levels of tables: 1 GiB identity-mapped by pages of 2 MiB. */
        movl    $pdpt + 3, pml4
        movl    $directory + 3, pdpt
        mov     $0x83, %eax
        xor     %ecx, %ecx
1:      mov     %eax, directory(,%ecx,8)
        add     $0x200000, %eax
        inc     %ecx
        cmp     $512, %ecx
        jb      1b
        mov     $0x20, %eax             /* CR4.PAE */
        mov     %eax, %cr4
        mov     $pml4, %eax
        mov     %eax, %cr3
        mov     $0xC0000080, %ecx       /* EFER.LME */
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        or      $0x80000001, %eax       /* CR0.PG, CR0.PE */
        mov     %eax, %cr0
        lgdt    gdt_pointer
        ljmp    $8, $long_mode

        .code64
long_mode:
        mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $stack_top, %rsp
        mov     $invalid_opcode, %eax
        mov     %ax, idt + 6 * 16
        shr     $16, %eax
        mov     %ax, idt + 6 * 16 + 6
        lidt    idt_pointer
        mov     count, %r12d
        test    %r12d, %r12d
        jz      done
        mov     %cr0, %r13
        mov     %cr4, %r14
        mov     %cr3, %r15
        xor     %edi, %edi
        .align  64
again:
#if LOOP == 0                           /* nothing: what the loop itself takes */
        nop
#elif LOOP == 1
        xor     %eax, %eax
        cpuid
#elif LOOP == 2
        rdtsc
#elif LOOP == 3
        xor     %eax, %eax
        mov     %rax, %cr8
#elif LOOP == 4                         /* CR0.WP on and off */
        btc     $16, %r13
        mov     %r13, %cr0
#elif LOOP == 5                         /* CR4.PGE on and off */
        btc     $7, %r14
        mov     %r14, %cr4
#elif LOOP == 6
        mov     %r15, %cr3
#elif LOOP == 7
        invlpg  (%rsp)
#elif LOOP == 8
        out     %al, $0x80
#elif LOOP == 9                         /* an exception and its return */
        ud2
#elif LOOP == 10                        /* code written from another page, then run */
        mov     %r12d, far_patched + 1
        call    far_patched
#elif LOOP == 11                        /* code written from the same page, then run */
        mov     %r12d, near_patched + 1
        call    near_patched
#elif LOOP == 12 || LOOP == 13          /* a load that misses in the TLB; CR3 reloaded each sweep */
        mov     REGION(%rdi), %al
#if LOOP == 12                          /* 8,192 pages in order */
        add     $0x1000, %edi
#else                                   /* in the order of a linear congruential generator */
        lea     12345 * 0x1000(%rdi,%rdi,4), %edi
#endif
        and     $REGION_BYTES - 1, %edi
        jnz     2f
        mov     %r15, %cr3
2:
#elif LOOP == 14                        /* code written from the block that it lies in */
        incb    own_operand(%rip)
        .byte   0xB0                    /* mov $0, %al */
own_operand:
        .byte   0
#else
#error "no such LOOP"
#endif
        dec     %r12d
        jnz     again
done:
        mov     $0x10, %al
        out     %al, $0xf4
1:      hlt
        jmp     1b

near_patched:
        mov     $0, %eax
        ret

invalid_opcode:
        addq    $2, (%rsp)              /* behind ud2 */
        iretq

        .align  8
gdt:    .quad   0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
gdt_pointer:
        .word   . - gdt - 1
        .quad   gdt
idt_pointer:
        .word   idt_end - idt - 1
        .quad   idt
        .align  8
idt:    .fill   6 * 2, 8, 0             /* vectors 0 to 5 */
        .word   0, 8                    /* the gate of #UD; its offset is set above */
        .byte   0, 0x8E
        .word   0
        .quad   0
idt_end:

        .section .patched, "awx"
        .align  4096
far_patched:
        mov     $0, %eax
        ret
        .align  4096

        .data
        .globl  count
        .align  4096
        .ascii  "count -->"
        .align  16
count:  .long   0

        .bss
        .align  4096
pml4:   .skip   4096
pdpt:   .skip   4096
directory:
        .skip   4096
        .skip   4096
stack_top:
