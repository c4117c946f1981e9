// SPDX-License-Identifier: Apache-2.0
// Workloads on memory: fill and verify, copy-on-write, page tables, faults.

#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guest.h"

#define PAGE 4096u
#define WORDS (PAGE / sizeof(uint64_t))
#define IS_32_BIT (sizeof(void *) == 4)
#define ELSEWHERE (IS_32_BIT ? 0x50000000ul : (unsigned long)0x200000000ull)  // nothing is mapped there
#define IN_THE_KERNEL (IS_32_BIT ? 0xc1000123ul : (unsigned long)0xffffffff81000123ull)

static uint64_t *map(size_t pages)
{
    void *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void write_page(uint64_t *page, uint64_t seed)
{
    uint64_t first = scramble(seed);
    for (size_t i = 0; i < WORDS; i++)
        page[i] = first + i * seed;
}

static int check_page(const uint64_t *page, uint64_t seed)
{
    uint64_t first = scramble(seed), wrong = 0;
    for (size_t i = 0; i < WORDS; i++)
        wrong |= page[i] ^ (first + i * seed);
    return wrong ? -1 : 0;
}

// Write most of the free memory, page by page, and verify it, twice with different contents.
int work_fill(void)
{
    long percent = parameter("percent", 70), passes = parameter("passes", 2);
    size_t pages = (size_t)meminfo("MemAvailable") / 4 * percent / 100;
    uint64_t *memory = map(pages);
    if (!memory)
        return fail("fill: mmap of %zu pages: %s", pages, strerror(errno));
    for (long pass = 1; pass <= passes; pass++) {
        for (size_t i = 0; i < pages; i++)
            write_page(memory + i * WORDS, pass * 0x100000 + i);
        for (size_t n = 0; n < pages; n++) {
            size_t i = pass & 1 ? n : pages - 1 - n;
            if (check_page(memory + i * WORDS, pass * 0x100000 + i))
                return fail("fill: pass %ld: page %zu of %zu is wrong", pass, i, pages);
        }
        say("fill: pass %ld/%ld: %zu pages verified", pass, passes, pages);
    }
    munmap(memory, pages * PAGE);
    return 0;
}

struct family {
    uint64_t *memory;
    size_t pages;
    long generation;
};

static int child_of_family(int index, void *context)
{
    struct family *family = context;
    for (size_t i = 0; i < family->pages; i++)
        if (check_page(family->memory + i * WORDS, i + 1))
            return fail("processes: child %d sees page %zu wrong", index, i);
    for (size_t i = index % 4; i < family->pages; i += 4)
        write_page(family->memory + i * WORDS, i + 1000 * (index + 1));
    for (size_t i = 0; i < family->pages; i++) {
        uint64_t seed = i % 4 == (size_t)index % 4 ? i + 1000 * (index + 1) : i + 1;
        if (check_page(family->memory + i * WORDS, seed))
            return fail("processes: child %d: its page %zu is wrong", index, i);
    }
    return 0;
}

// Children share their parent's memory copy-on-write, change some of it, and see only their own.
int work_processes(void)
{
    struct family family = {.pages = parameter("pages", 512)};
    long rounds = parameter("rounds", 12), children = parameter("children", 8);
    family.memory = map(family.pages);
    if (!family.memory)
        return fail("processes: mmap: %s", strerror(errno));
    for (size_t i = 0; i < family.pages; i++)
        write_page(family.memory + i * WORDS, i + 1);
    for (long round = 0; round < rounds; round++) {
        if (in_children(children, child_of_family, &family))
            return -1;
        for (size_t i = 0; i < family.pages; i++)
            if (check_page(family.memory + i * WORDS, i + 1))
                return fail("processes: the parent's page %zu was changed", i);
    }
    say("processes: %ld children", rounds * children);
    munmap(family.memory, family.pages * PAGE);
    return 0;
}

// Map, touch, protect, move and unmap small regions, over and over: all page-table work.
int work_mappings(void)
{
    long rounds = parameter("rounds", 1500);
    const size_t pages = 32;
    for (long round = 0; round < rounds; round++) {
        uint64_t *region = map(pages);
        if (!region)
            return fail("mappings: mmap: %s", strerror(errno));
        for (size_t i = 0; i < pages; i++)
            region[i * WORDS] = scramble(round * pages + i);
        uint64_t *moved = mremap(region, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                                 (char *)ELSEWHERE + (round & 63) * 0x400000);
        if (moved == MAP_FAILED)
            return fail("mappings: mremap: %s", strerror(errno));
        if (mprotect(moved, pages / 2 * PAGE, PROT_READ))
            return fail("mappings: mprotect: %s", strerror(errno));
        for (size_t i = 0; i < pages; i++)
            if (moved[i * WORDS] != scramble(round * pages + i) || moved[i * WORDS + 1] != 0)
                return fail("mappings: round %ld: page %zu is wrong", round, i);
        if (madvise(moved + pages / 2 * WORDS, PAGE, MADV_DONTNEED) || moved[pages / 2 * WORDS])
            return fail("mappings: round %ld: a page given back is not zero", round);
        munmap(moved, pages * PAGE);
    }
    say("mappings: %ld rounds", rounds);
    return 0;
}

static sigjmp_buf back;
static volatile void *fault_address;
static volatile int fault_signal, fault_code;
static volatile long fault_error;

static void on_fault(int signal, siginfo_t *information, void *context)
{
    const ucontext_t *state = context;
    fault_signal = signal;
    fault_code = information->si_code;
    fault_address = information->si_addr;
    fault_error = state->uc_mcontext.gregs[REG_ERR];
    siglongjmp(back, 1);
}

// The signal that `access` meets, or 0 if it meets none.
static int caught(void (*access)(volatile char *), volatile char *at)
{
    fault_signal = 0;
    if (sigsetjmp(back, 1) == 0)
        access(at);
    return fault_signal;
}

// The error code of the page fault that `access` meets at `at`, or a negative number.
static long error_of(void (*access)(volatile char *), volatile char *at)
{
    int signal = caught(access, at);
    if (signal != SIGSEGV)
        return -1;
    return fault_address == at ? fault_error : -2;
}

// A kernel of i386 without PAE has no such bit in its page tables; with PAE, Linux 6.1 makes page
// protections in 32 bits (vm_get_page_prot), which cuts the bit off: data can be called, under QEMU too.
enum { HAS_NO_EXECUTE = !IS_32_BIT };

static void load(volatile char *at) { (void)*at; }
static void store(volatile char *at) { *at = 1; }
static void call(volatile char *at) { ((void (*)(void))(uintptr_t)at)(); }
static void divide(volatile char *at)
{
    volatile int zero = *at, result = 7 / zero;
    (void)result;
}
static void undefined(volatile char *at)
{
    (void)at;
    __asm__ volatile("ud2");
}

// Page faults with their exact error codes, and other exceptions, handled by this program.
int work_signals(void)
{
    FILE *trace = fopen("/proc/sys/debug/exception-trace", "w");
    if (trace) {  // or the kernel logs each signal
        fputs("0", trace);
        fclose(trace);
    }
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    for (int i = 0; i < 3; i++)
        sigaction((int[]){SIGSEGV, SIGFPE, SIGILL}[i], &action, NULL);
    volatile char *readable = (char *)map(1), *hole = (char *)map(1);
    volatile char *kernel = (char *)IN_THE_KERNEL;
    *readable = 0;
    mprotect((void *)readable, PAGE, PROT_READ);
    munmap((void *)hole, PAGE);
    const struct {
        const char *name;
        long got, wanted;
    } cases[] = {
        {"load of nothing", error_of(load, hole + 5), 4},
        {"store to nothing", error_of(store, hole + 0xfff), 6},
        {"call of nothing", error_of(call, hole), 0x14},
        {"store to read-only", error_of(store, readable + 77), 7},
        {"call of data", error_of(call, readable), 0x15},
        {"load of the kernel", error_of(load, kernel) | 1, 5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (cases[i].got != cases[i].wanted && (cases[i].wanted != 0x15 || HAS_NO_EXECUTE))
            return fail("signals: %s: error code %#lx, not %#lx", cases[i].name, cases[i].got,
                        cases[i].wanted);
    if (caught(divide, readable) != SIGFPE || fault_code != FPE_INTDIV)
        return fail("signals: division by zero: signal %d, code %d", fault_signal, fault_code);
    if (caught(undefined, readable) != SIGILL)
        return fail("signals: undefined instruction: signal %d", fault_signal);
    for (long i = 0, rounds = parameter("rounds", 300); i < rounds; i++)
        if (error_of(store, readable + i % PAGE) != 7)
            return fail("signals: fault %ld went wrong", i);
    return 0;
}
