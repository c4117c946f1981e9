/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A Multiboot v1 kernel for the paging modes before long mode, in one file:
 *
 *   1. 32-bit two-level paging: a 4 MiB page (CR4.PSE) and 4 KiB pages;
 *   2. PAE paging: a 2 MiB page and 4 KiB pages;
 *   3. long mode: 1 GiB (if CPUID has it), 2 MiB and 4 KiB pages.
 *
 * In each stage the low 4 MiB are mapped one to one, and the same two frames are reached through
 * a large mapping and, crossed over, through small ones: what is written through one must be read
 * through the other. One line on COM1 per stage; then 0x10 (success) or 0x11 to port 0xf4.
 */
#define COM1 0x3f8
#define EXIT_PORT 0xf4
#define LOADER_MAGIC 0x2badb002

#define FRAME_ONE 0x300000          /* two frames of RAM that nothing else uses: needs 4 MiB */
#define FRAME_TWO 0x301000
#define WINDOW 0x40000000           /* small mappings: FRAME_TWO, then FRAME_ONE */
#define LARGE_WINDOW 0x40400000     /* a large mapping of the block with both frames */

#define PRESENT_WRITABLE 0x3
#define LARGE 0x83
#define CR0_PG 0x80000000
#define CR0_PE 0x1
#define CR0_WP 0x10000
#define CR4_PSE 0x10
#define CR4_PAE 0x20
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100

    .section .text, "ax"
    .align 4
    .long 0x1badb002
    .long 0x00000003
    .long -(0x1badb002 + 0x00000003)

    .code32
    .globl start
start:
    cli
    cld
    mov $stack_top, %esp
    cmp $LOADER_MAGIC, %eax
    jne failure
    lgdt gdt_pointer
    ljmp $0x08, $1f
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $text_start, %esi
    call print

/* Stage 1: two-level paging. */
    movl $0x000000 | LARGE, directory + 0
    movl $window_table + PRESENT_WRITABLE, directory + (WINDOW >> 22) * 4
    movl $0x000000 | LARGE, directory + (LARGE_WINDOW >> 22) * 4
    movl $FRAME_TWO + PRESENT_WRITABLE, window_table + 0
    movl $FRAME_ONE + PRESENT_WRITABLE, window_table + 4
    mov $CR4_PSE, %eax
    mov %eax, %cr4
    mov $directory, %eax
    mov %eax, %cr3
    mov $CR0_PG | CR0_WP | CR0_PE, %eax
    mov %eax, %cr0
    mov $0x11110000, %edx
    mov $LARGE_WINDOW + FRAME_ONE, %edi
    call check
    /* Exchange the small pages: after invlpg the window shows the frames in order. */
    movl $FRAME_ONE + PRESENT_WRITABLE, window_table + 0
    movl $FRAME_TWO + PRESENT_WRITABLE, window_table + 4
    invlpg WINDOW
    invlpg WINDOW + 0x1000
    mov WINDOW, %eax
    cmp FRAME_ONE, %eax
    jne failure
    mov WINDOW + 0x1000, %eax
    cmp FRAME_TWO, %eax
    jne failure
    mov $CR0_PE, %eax               /* paging off, to change the format of the tables */
    mov %eax, %cr0
    mov $text_two_level, %esi
    call print

/* Stage 2: PAE. The window's table becomes one of 8-byte entries. */
    mov $window_table, %edi
    mov $1024, %ecx
    xor %eax, %eax
    rep stosl
    movl $pae_directory_low + 1, pae_pointers + 0
    movl $pae_directory_window + 1, pae_pointers + 8
    movl $0x000000 | LARGE, pae_directory_low + 0
    movl $0x200000 | LARGE, pae_directory_low + 8
    movl $window_table + PRESENT_WRITABLE, pae_directory_window + 0
    movl $0x200000 | LARGE, pae_directory_window + ((LARGE_WINDOW - WINDOW) >> 21) * 8
    movl $FRAME_TWO + PRESENT_WRITABLE, window_table + 0
    movl $FRAME_ONE + PRESENT_WRITABLE, window_table + 8
    mov $CR4_PAE, %eax
    mov %eax, %cr4
    mov $pae_pointers, %eax
    mov %eax, %cr3
    mov $CR0_PG | CR0_WP | CR0_PE, %eax
    mov %eax, %cr0
    mov $0x22220000, %edx
    mov $LARGE_WINDOW + FRAME_ONE - 0x200000, %edi
    call check
    mov $CR0_PE, %eax
    mov %eax, %cr0
    mov $text_pae, %esi
    call print

/* Stage 3: long mode. Two more levels above the same directories. */
    mov $0x80000001, %eax
    cpuid
    test $1 << 29, %edx
    jz failure
    mov %edx, cpu_features
    movl $pointers + PRESENT_WRITABLE, top + 0
    movl $pae_directory_low + PRESENT_WRITABLE, pointers + 0
    movl $pae_directory_window + PRESENT_WRITABLE, pointers + 8
    test $1 << 26, %edx             /* 1 GiB pages */
    jz 1f
    movl $0x00000000 | LARGE, pointers + 16
1:  mov $top, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_LME, %eax
    wrmsr
    mov $CR0_PG | CR0_WP | CR0_PE, %eax
    mov %eax, %cr0
    ljmp $0x18, $long_mode

/* EDX = pattern, EDI = where the large window shows FRAME_ONE. */
check:
    xor %ecx, %ecx
1:  lea (%edx, %ecx), %eax          /* write both frames through the small window */
    mov %eax, WINDOW(, %ecx, 4)
    inc %ecx
    cmp $2048, %ecx
    jne 1b
    xor %ecx, %ecx
2:  lea 1024(%edx, %ecx), %eax      /* FRAME_ONE was the second page of the window */
    cmp %eax, (%edi, %ecx, 4)
    jne failure
    cmp %eax, FRAME_ONE(, %ecx, 4)
    jne failure
    lea (%edx, %ecx), %eax
    cmp %eax, 0x1000(%edi, %ecx, 4)
    jne failure
    not %eax
    mov %eax, 0x1000(%edi, %ecx, 4) /* and back through the large one */
    cmp %eax, WINDOW(, %ecx, 4)
    jne failure
    inc %ecx
    cmp $1024, %ecx
    jne 2b
    ret

/* ESI = text. In 32-bit code; stage 3 has its own. */
print:
    mov $COM1 + 5, %edx
1:  inb %dx, %al
    test $0x20, %al
    jz 1b
    lodsb
    test %al, %al
    jz 2f
    mov $COM1, %edx
    outb %al, %dx
    jmp print
2:  ret

failure:
    mov $text_failure, %esi
    call print
    mov $0x11, %eax
    mov $EXIT_PORT, %edx
    outl %eax, %dx
1:  cli
    hlt
    jmp 1b

    .code64
long_mode:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $stack_top, %esp
    mov $0x3333000033330000, %rdx
    mov $WINDOW, %r8d
    mov $LARGE_WINDOW + FRAME_ONE - 0x200000, %edi
    call check_long
    mov $cpu_features, %eax
    testl $1 << 26, (%rax)
    jz 1f
    mov $0x4444000044440000, %rdx
    mov $0x80000000 + FRAME_ONE, %edi
    call check_long
1:  mov $text_long, %esi
    call print_long
    mov $text_success, %esi
    call print_long
    mov $0x10, %eax
    jmp leave

check_long:                         /* RDX = pattern, R8 = small window, RDI = large one */
    xor %ecx, %ecx
1:  lea (%rdx, %rcx), %rax
    mov %rax, (%r8, %rcx, 8)
    inc %ecx
    cmp $1024, %ecx
    jne 1b
    xor %ecx, %ecx
2:  lea 512(%rdx, %rcx), %rax
    cmp %rax, (%rdi, %rcx, 8)
    jne failure_long
    lea (%rdx, %rcx), %rax
    cmp %rax, 0x1000(%rdi, %rcx, 8)
    jne failure_long
    not %rax
    mov %rax, 0x1000(%rdi, %rcx, 8)
    cmp %rax, (%r8, %rcx, 8)
    jne failure_long
    inc %ecx
    cmp $512, %ecx
    jne 2b
    ret

print_long:
    mov $COM1 + 5, %edx
1:  inb %dx, %al
    test $0x20, %al
    jz 1b
    lodsb
    test %al, %al
    jz 2f
    mov $COM1, %edx
    outb %al, %dx
    jmp print_long
2:  ret

failure_long:
    mov $text_failure, %esi
    call print_long
    mov $0x11, %eax
leave:
    mov $EXIT_PORT, %edx
    outl %eax, %dx
1:  cli
    hlt
    jmp 1b

    .section .rodata, "a"
    .align 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        /* 0x08 32-bit code */
    .quad 0x00cf93000000ffff        /* 0x10 data */
    .quad 0x00af9b000000ffff        /* 0x18 64-bit code */
gdt_pointer:
    .word . - gdt - 1
    .long gdt
text_start:
    .asciz "multiboot32: protected mode\r\n"
text_two_level:
    .asciz "multiboot32: two-level paging: 4 MiB and 4 KiB pages verified\r\n"
text_pae:
    .asciz "multiboot32: PAE paging: 2 MiB and 4 KiB pages verified\r\n"
text_long:
    .asciz "multiboot32: long mode: pages of every size verified\r\n"
text_success:
    .asciz "multiboot32: verdict: success\r\n"
text_failure:
    .asciz "multiboot32: verdict: failure\r\n"

    .section .bss
    .align 4096
directory:
    .fill 4096
window_table:
    .fill 4096
pae_directory_low:
    .fill 4096
pae_directory_window:
    .fill 4096
top:
    .fill 4096
pointers:
    .fill 4096
pae_pointers:
    .fill 32
cpu_features:
    .fill 4
    .align 16
    .fill 4096
stack_top:

    .section .note.GNU-stack, "", @progbits
