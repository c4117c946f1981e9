/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers that C and assembly share: addresses, selectors, control bits, ports. */
#ifndef LAYOUT_H
#define LAYOUT_H

#include "common.h"

#ifdef __ASSEMBLER__
#define U64(value) value
#else
#define U64(value) value##u
#endif

#define KERNEL_BASE U64(0xffffffff80000000) /* gPA 0 as the kernel image sees it */
#define DIRECT_BASE U64(0xffff800000000000) /* all RAM */
#define WINDOW_BASE U64(0xffffc00000000000) /* kernel mappings made for tests */

#define KERNEL_CS 0x08
#define KERNEL_SS 0x10
#define USER_SS 0x23
#define USER_CS 0x2b
#define TSS_SELECTOR 0x30
#define ABSENT_SELECTOR 0x40 /* a data segment, DPL 3, not present */
#define GDT_ENTRIES 9

#define CR0_PE 0x1
#define CR0_MP 0x2
#define CR0_ET 0x10
#define CR0_NE 0x20
#define CR0_WP 0x10000
#define CR0_PG 0x80000000
#define CR4_PAE 0x20
#define CR4_PGE 0x80
#define CR4_SMEP 0x100000
#define CR4_SMAP 0x200000

#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_FMASK 0xc0000084
#define EFER_SCE 0x1
#define EFER_LME 0x100
#define EFER_NXE 0x800

#define FLAG_TRAP 0x100
#define FLAG_INTERRUPT 0x200
#define FLAG_DIRECTION 0x400
#define FLAG_NESTED 0x4000
#define FLAG_ALIGNMENT 0x40000

#define EXIT_PORT 0xf4
#define EXIT_SUCCESS 0x10
#define EXIT_FAILURE 0x11

#define BOOT_MULTIBOOT 0
#define BOOT_LINUX 1

#define VECTOR_DEBUG 1
#define VECTOR_BREAKPOINT 3
#define VECTOR_DOUBLE_FAULT 8
#define VECTOR_PROTECTION 13
#define VECTOR_PAGE_FAULT 14
#define VECTOR_TIMER 0x20
#define VECTOR_CALL 0x80
#define VECTOR_SYSCALL 0x100 /* not a vector: marks a frame that `syscall` made */

#endif
