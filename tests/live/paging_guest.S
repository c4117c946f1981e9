/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A Multiboot v1 guest that turns on the paging of its command line's first letter and stays there:
 * "2" for two-level paging with a 4 MiB page, "P" for PAE with a 2 MiB page, "n" for none at all.
 *
 *   0x00000000  4 MiB, one to one, large
 *   0x40000000  two small pages: 0x301000, then 0x300000; nothing behind them
 *   0x40400000  large: the block from 0 on, read-only
 *   0xc0000000  a small page of memory that is not there (gPA 0x3ff00000)
 */
#define PRESENT 0x1
#define WRITABLE 0x3
#define LARGE 0x83

    .section .text, "ax"
    .align 4
    .long 0x1badb002
    .long 0x00000000
    .long -0x1badb002
    .code32
    .globl start
start:
    cli
    mov 16(%ebx), %esi              /* the command line: "FILE LETTER" */
1:  lodsb
    test %al, %al
    jz stay
    cmp $' ', %al
    jne 1b
    lodsb
    cmp $'2', %al
    je two_level
    cmp $'P', %al
    jne stay

    movl $low_pae + PRESENT, pointers
    movl $window_pae_directory + PRESENT, pointers + 8
    movl $high_pae + PRESENT, pointers + 24
    movl $LARGE, low_pae
    movl $0x200000 + LARGE, low_pae + 8
    movl $window + WRITABLE, window_pae_directory
    movl $LARGE - 2, window_pae_directory + 16
    movl $0x301000 + WRITABLE, window
    movl $0x300000 + PRESENT, window + 8
    movl $high_table + WRITABLE, high_pae
    movl $0x3ff00000 + WRITABLE, high_table
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $pointers, %eax
    jmp enable

two_level:
    movl $LARGE, directory
    movl $window + WRITABLE, directory + 0x100 * 4
    movl $LARGE - 2, directory + 0x101 * 4
    movl $high_table + WRITABLE, directory + 0x300 * 4
    movl $0x301000 + WRITABLE, window
    movl $0x300000 + PRESENT, window + 4
    movl $0x3ff00000 + WRITABLE, high_table
    mov %cr4, %eax
    or $0x10, %eax
    mov %eax, %cr4
    mov $directory, %eax

enable:
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80010000, %eax
    mov %eax, %cr0
stay:
    mov $'!', %al                   /* where it should be: said on COM1 */
    mov $0x3f8, %dx
    out %al, %dx
1:  hlt
    jmp 1b

    .bss
    .align 4096
directory: .skip 4096
window: .skip 4096
high_table: .skip 4096
pointers: .skip 4096
low_pae: .skip 4096
window_pae_directory: .skip 4096
high_pae: .skip 4096
