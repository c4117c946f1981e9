/* SPDX-License-Identifier: Apache-2.0 */
/* What programs in ring 3 are made of. They keep no globals: memory comes from map(). */
#ifndef USER_H
#define USER_H

#include "common.h"

static inline s64 call4(u64 number, u64 a, u64 b, u64 c, u64 d)
{
    s64 result;
    register u64 r10 __asm__("r10") = d;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}

/* The same through a gate; its IRETQ also serializes. */
static inline s64 gate4(u64 number, u64 a, u64 b, u64 c, u64 d)
{
    s64 result;
    register u64 r10 __asm__("r10") = d;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "memory");
    return result;
}

_Noreturn void fail(const char *what, u64 address, u64 expected, u64 found);
void print(const char *format, ...);
_Noreturn void exit(u64 status);

/* These end the run if the kernel refuses. */
void map(u64 address, u64 length, u64 protection, u64 flags);
void unmap(u64 address, u64 length, u64 flush);
void protect(u64 address, u64 length, u64 protection, u64 flush);
void require(u64 call, u64 a, u64 b, u64 c, u64 d);

/* Fork `count` children, run `body` in each, collect them; fails unless all exit with 0. */
void in_children(u32 count, void (*body)(u32 index, u64 argument), u64 argument);

static inline void store(u64 address, u64 value)
{
    *(volatile u64 *)address = value;
}

static inline u64 load(u64 address)
{
    return *(volatile u64 *)address;
}

/* Fill with and verify mix(seed, number of the word in the range). */
void fill_range(u64 address, u64 pages, u64 seed);
void verify_range(u64 address, u64 pages, u64 seed, const char *what);
void verify_value(u64 address, u64 expected, const char *what);

/* probe.c: accesses that are expected to fault for good */
void run_probe(void (*code)(u64), u64 argument);
struct fault_record probe(void (*code)(u64), u64 argument);
void expect_page_fault(void (*code)(u64), u64 address, u64 error, const char *what);
void probe_read(u64 address), probe_write(u64 address), probe_fetch(u64 address);

u64 program_fill(u64 seed, u64 pages, u64 passes, u64 flags, u64 unused);
u64 program_random(u64 seed, u64 pages, u64 operations, u64 flags, u64 unused);
u64 program_identical(u64 index, u64 count, u64 pages, u64 rounds, u64 hold);
u64 program_idle(u64 seed, u64 pages, u64 ticks, u64 unused1, u64 unused2);
u64 program_churn(u64 seed, u64 rounds, u64 large, u64 unused1, u64 unused2);
u64 program_processes(u64 index, u64 count, u64 rounds, u64 seed, u64 pages);
u64 program_faults(u64 large, u64 step, u64 kernel_text, u64 strict, u64 unused);
u64 program_selfmod(u64 rounds, u64 seed, u64 unused1, u64 unused2, u64 unused3);
u64 program_trespass(u64 kind, u64 unused1, u64 unused2, u64 unused3, u64 unused4);

#endif
