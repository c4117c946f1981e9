/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel and the programs in ring 3 agree on: types, system calls, the pattern that fills
 * memory. Included by assembly too, which sees only the numbers.
 */
#ifndef COMMON_H
#define COMMON_H

#define PAGE_SIZE 4096
#define LARGE_SIZE 0x200000
#define WORDS_PER_PAGE 512

/* System calls: number in RAX, arguments in RDI, RSI, RDX, R10, result in RAX. `syscall` and
 * `int $0x80` take the same ones. */
#define CALL_EXIT 0            /* (status) */
#define CALL_PRINT 1           /* (text, length) */
#define CALL_FAIL 2            /* (const struct failure *): ends the whole run */
#define CALL_FORK 3            /* () -> pid, or 0 in the child */
#define CALL_WAIT 4            /* (pid) -> status; KILLED + vector if a fault ended it */
#define CALL_YIELD 5
#define CALL_SLEEP 6           /* (ticks) */
#define CALL_PID 7
#define CALL_MAP 8             /* (address, length, protection, flags) */
#define CALL_UNMAP 9           /* (address, length, flush) */
#define CALL_PROTECT 10        /* (address, length, protection, flush) */
#define CALL_ALIAS 11          /* (from, to, length, protection): both see the same pages */
#define CALL_EXCHANGE 12       /* (one, other, length, flush): swap the pages of two ranges */
#define CALL_EXCHANGE_TABLES 13 /* (one, other, level, flush): swap two upper-level entries */
#define CALL_PROTECT_TABLE 14  /* (address, level, writable, flush): edit an upper-level W bit */
#define CALL_SPLIT 15          /* (address, flush): 2 MiB page -> 512 small ones */
#define CALL_COLLAPSE 16       /* (address, flush): 512 small pages -> one of 2 MiB */
#define CALL_ARM_PROBE 17      /* (rip, rsp): where to resume after the next fatal fault */
#define CALL_PROBE_RESULT 18   /* (struct fault_record *) */
#define CALL_BARRIER 19        /* (count): wait until that many processes are here */
#define CALL_PIPE_WRITE 20     /* (pipe, buffer, length) */
#define CALL_PIPE_READ 21      /* (pipe, buffer, length) */
#define CALL_SUM 22            /* (buffer, words, u64 *sum): the kernel reads user memory */
#define CALL_STORE 23          /* (buffer, words, value): the kernel writes user memory */
#define CALL_MAPPING 24        /* (address) -> MAPPING_ bits */
#define CALL_FREE_PAGES 25     /* () -> pages the allocator could still give */
#define CALL_POISON 26         /* (address, kind, on): set a reserved bit in the entry */
#define CALL_COUNT 27

#define ERROR_BAD_ADDRESS (-14)
#define ERROR_INVALID (-22)
#define ERROR_NO_MEMORY (-12)

#define PROT_READ 1
#define PROT_WRITE 2
#define PROT_EXECUTE 4

#define MAP_LARGE 1 /* use 2 MiB pages where aligned and available */

/* How a page-table edit is made known to the processor. */
#define FLUSH_INVLPG 0
#define FLUSH_CR3 1

#define MAPPING_PRESENT 1
#define MAPPING_WRITABLE 2
#define MAPPING_LARGE 4
#define MAPPING_ACCESSED 8
#define MAPPING_DIRTY 16

#define POISON_SMALL 0 /* bit 51 of a 4 KiB entry: reserved if MAXPHYADDR < 52 */
#define POISON_LARGE 1 /* bit 13 of a 2 MiB entry */
#define POISON_TOP 2   /* bit 7 of a level-4 entry */

#define STATUS_KILLED 0x100 /* + vector */

#define PROGRAM_FILL 0
#define PROGRAM_RANDOM 1
#define PROGRAM_IDENTICAL 2
#define PROGRAM_IDLE 3
#define PROGRAM_CHURN 4
#define PROGRAM_PROCESSES 5
#define PROGRAM_FAULTS 6
#define PROGRAM_SELFMOD 7
#define PROGRAM_TRESPASS 8
#define PROGRAM_COUNT 9

#define USER_IMAGE 0x400000
#define USER_HEAP 0x10000000
#define USER_STACK_TOP 0x7fffffffe000
#define USER_TOP 0x7ffffffff000
#define USER_STACK_SIZE 0x10000

#ifndef __ASSEMBLER__

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;

/* What an unresolved fault left behind, as the processor reported it. */
struct fault_record {
    u64 vector; /* NO_FAULT if there was none */
    u64 error;
    u64 address; /* CR2 */
    u64 rip;
};
#define NO_FAULT 0xffff

struct failure {
    char what[64];
    u64 address;
    u64 expected;
    u64 found;
};

void *memset(void *to, int byte, size_t length);
void *memcpy(void *to, const void *from, size_t length);
int memcmp(const void *one, const void *other, size_t length);
size_t strlen(const char *text);
bool text_equal(const char *one, const char *other);

/* %u %x (both u64), %s, %% only. Returns the length; always terminates `to`. */
size_t format_line(char *to, size_t size, const char *format, ...);
size_t format_list(char *to, size_t size, const char *format, va_list values);

/* The content of word `index` under `seed`: cheap, and no two words of a pass look alike. */
static inline u64 mix(u64 seed, u64 index)
{
    u64 x = (index + 1) * 0x9e3779b97f4a7c15u + seed;
    x ^= x >> 32;
    return x * 0xd6e8feb86659fd93u;
}

/* A small generator for choices (xorshift64*); the state must not be zero. */
static inline u64 next_random(u64 *state)
{
    u64 x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1du;
}

#endif
#endif
