/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both ways in. Everything here runs at its physical address (identity-mapped) and is given back
 * to the page allocator once the kernel's own page tables are loaded.
 *
 * Multiboot v1 enters at entry32 in 32-bit protected mode without paging; the Linux 64-bit boot
 * protocol enters at entry64 in long mode. They meet in `join` on the boot page tables, which map
 * the first GiB twice: at 0 and at KERNEL_BASE.
 */
#include "layout.h"

#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 0x00010003 /* page-aligned modules, memory map, address fields */
#define MULTIBOOT_LOADER 0x2badb002

    .section .boot.text, "ax"
    .align 4
multiboot_header:
    .long MULTIBOOT_MAGIC
    .long MULTIBOOT_FLAGS
    .long -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)
    .long multiboot_header
    .long boot_start
    .long load_end_physical
    .long bss_end_physical
    .long entry32

    .code32
    .globl entry32
entry32:
    cli
    cld
    cmp $MULTIBOOT_LOADER, %eax
    jne hopeless
    mov %ebx, %esi                  /* the multiboot information */
    mov $0x80000001, %eax
    cpuid
    test $1 << 29, %edx             /* long mode? */
    jz hopeless
    mov $CR4_PAE, %eax
    mov %eax, %cr4
    mov $boot_pml4, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_LME | EFER_NXE, %eax
    wrmsr
    mov $CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE, %eax
    mov %eax, %cr0
    lgdt boot_gdt_pointer
    mov $BOOT_MULTIBOOT, %edi
    ljmp $KERNEL_CS, $join

hopeless:                           /* no long mode, or no loader we know */
    mov $EXIT_FAILURE, %eax
    mov $EXIT_PORT, %edx
    outl %eax, %dx
1:  cli
    hlt
    jmp 1b

    .code64
    .globl entry64
entry64:                            /* RSI = zero page */
    cli
    cld
    mov $MSR_EFER, %ecx             /* the boot tables use no NX, the kernel's will */
    rdmsr
    or $EFER_NXE, %eax
    wrmsr
    mov $boot_pml4, %eax
    mov %rax, %cr3
    mov $CR4_PAE, %eax
    mov %rax, %cr4
    mov $CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE, %eax
    mov %rax, %cr0
    mov $boot_scratch_top, %esp
    lgdt boot_gdt_pointer
    mov $BOOT_LINUX, %edi
    pushq $KERNEL_CS
    pushq $join
    lretq

join:                               /* EDI = protocol, ESI = its information */
    mov $KERNEL_SS, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov %edi, %edi                  /* the upper halves are undefined after 32-bit code */
    mov %esi, %esi
    mov %rdi, %r8
    mov $bss_start, %rdi
    mov $bss_end, %rcx
    sub %rdi, %rcx
    rep stosb
    mov %r8, %rdi
    mov $boot_stack_top, %rsp
    xor %ebp, %ebp
    mov $kernel_main, %rax
    call *%rax
    ud2

    .align 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        /* 64-bit code */
    .quad 0x00cf93000000ffff        /* data */
boot_gdt_pointer:
    .word . - boot_gdt - 1
    .quad boot_gdt

    .section .boot.data, "aw"
    .align PAGE_SIZE
boot_pml4:
    .quad boot_pdpt + 3
    .fill 510, 8, 0
    .quad boot_pdpt_high + 3
boot_pdpt:
    .quad boot_pd + 3
    .fill 511, 8, 0
boot_pdpt_high:                     /* KERNEL_BASE is the last but one GiB */
    .fill 510, 8, 0
    .quad boot_pd + 3
    .quad 0
boot_pd:
    .set index, 0
    .rept 512
    .quad index * LARGE_SIZE + 0x83
    .set index, index + 1
    .endr
    .fill 8, 8, 0
boot_scratch_top:

    .section .bss
    .align PAGE_SIZE
    .fill 2 * PAGE_SIZE
    .globl boot_stack_top
boot_stack_top:

    .section .note.GNU-stack, "", @progbits
