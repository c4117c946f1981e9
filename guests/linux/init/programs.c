// SPDX-License-Identifier: Apache-2.0
// Workloads of programs and files: page cache, a compile-like mix, arithmetic, idle time.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

#define BLOCK 16384

static void fill_block(uint64_t *block, uint64_t seed)
{
    for (size_t i = 0; i < BLOCK / sizeof *block; i++)
        block[i] = scramble(seed + i);
}

static int write_file(const char *path, uint64_t seed, int blocks)
{
    static uint64_t block[BLOCK / 8];
    int file = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
    for (int i = 0; file >= 0 && i < blocks; i++) {
        fill_block(block, seed + i * 0x10000);
        if (write(file, block, BLOCK) != BLOCK) {
            close(file);
            return fail("cache: write of %s: %s", path, strerror(errno));
        }
    }
    return file < 0 ? fail("cache: %s: %s", path, strerror(errno)) : close(file);
}

static int check_file(const char *path, uint64_t seed, int blocks)
{
    static uint64_t block[BLOCK / 8], expected[BLOCK / 8];
    int file = open(path, O_RDONLY), bad = file < 0;
    for (int i = 0; !bad && i < blocks; i++) {
        fill_block(expected, seed + i * 0x10000);
        bad = read(file, block, BLOCK) != BLOCK || memcmp(block, expected, BLOCK) != 0;
    }
    close(file);
    return bad ? fail("cache: %s is wrong", path) : 0;
}

// Files in tmpfs: written, renamed, read back, partly removed and written again.
int work_cache(void)
{
    long files = parameter("files", 64), rounds = parameter("rounds", 2);
    int blocks = parameter("blocks", 32);
    char path[64], other[64];
    for (long round = 0; round < rounds; round++) {
        for (long i = 0; i < files; i++) {
            snprintf(path, sizeof path, "/tmp/cache-%ld", i);
            if (write_file(path, round * 0x1000000 + i, blocks))
                return -1;
        }
        for (long i = 0; i < files; i++) {
            snprintf(path, sizeof path, "/tmp/cache-%ld", i);
            snprintf(other, sizeof other, "/tmp/moved-%ld", i);
            if (rename(path, other) || check_file(other, round * 0x1000000 + i, blocks))
                return fail("cache: round %ld, file %ld", round, i);
            if (i % 2)
                unlink(other);
        }
        sync();
    }
    for (long i = 0; i < files; i++) {
        snprintf(other, sizeof other, "/tmp/moved-%ld", i);
        unlink(other);
    }
    say("cache: %ld files of %d KiB, %ld rounds", files, blocks * BLOCK / 1024, rounds);
    return 0;
}

static int run_script(const char *workload, char *shell, char *const environment[])
{
    char units[24];
    snprintf(units, sizeof units, "%ld", parameter("units", 10));
    int status = run((char *[]){shell, "/lib/compile.sh", units, NULL}, environment);
    return status == 0 ? 0 : fail("%s: the script ended with status %d", workload, status);
}

// A script of many short programs whose results are compared by the script itself.
int work_compile(void) { return run_script("compile", "/bin/sh", NULL); }

// The same script by programs of 32 bits: another entry to the kernel, and compatibility mode.
int work_programs32(void)
{
    return run_script("programs32", "/bin32/sh", (char *[]){"PATH=/bin32", NULL});
}

// Its callers compare what it computes each time: the compiler must not call it once for all of them.
__attribute__((noipa)) static double series(uint64_t seed, int terms)
{
    double sum = 0, x = 1.0 + (double)(seed % 1000) / 1000;
    for (int i = 1; i <= terms; i++)
        sum += x / ((double)i * i) + 1.0 / (sum + i);
    return sum;
}

#define TERMS 200000
#define CHILDREN 6

// The sums for seeds 0 to 5, in double precision to the last bit (IEEE 754, computed elsewhere).
static const double sums[CHILDREN] = {
    0x1.a8e7433400713p+3, 0x1.a8f2519ef20fdp+3, 0x1.a8fd6032b4de8p+3,
    0x1.a9086eef43b5ap+3, 0x1.a9137dd499826p+3, 0x1.a91e8ce2b1224p+3,
};

static int float_child(int index, void *context)
{
    (void)context;
    // x87 has more precision in its registers: there, only that the sum stays as it was.
    volatile double wanted = FLT_EVAL_METHOD == 0 ? sums[index] : series(index, TERMS);
    for (int i = 0; i < 5; i++) {
        volatile double sum = series(index, TERMS);
        if (sum != wanted)
            return fail("compute: child %d: the sum is %a, not %a", index, sum, wanted);
        sched_yield();
    }
    return 0;
}

static uint32_t sieve(uint32_t limit)
{
    uint32_t count = 0;
    char *composite = calloc(limit, 1);
    for (uint32_t i = 2; composite && i < limit; i++) {
        if (composite[i])
            continue;
        count++;
        for (uint64_t j = (uint64_t)i * i; j < limit; j += i)
            composite[j] = 1;
    }
    free(composite);
    return count;
}

// Integers, and floating-point sums by several processes at once, which must not mix.
int work_compute(void)
{
    long rounds = parameter("rounds", 3);
    uint64_t hash = 1;
    for (long round = 0; round < rounds; round++) {
        uint32_t primes = sieve(2000000);
        if (primes != 148933)
            return fail("compute: %u primes below 2000000, not 148933", primes);
        for (int i = 0; i < 3000000; i++)
            hash = scramble(hash);
        if (in_children(CHILDREN, float_child, NULL))
            return -1;
    }
    say("compute: %ld rounds, hash %016llx", rounds, (unsigned long long)hash);
    return 0;
}

// Sleep, and compare two clocks with each other and with what was asked.
int work_idle(void)
{
    long ms = parameter("milliseconds", 2000);
    struct timespec wait = {ms / 1000, ms % 1000 * 1000000}, before, after, wall;
    time_t start = time(NULL);
    clock_gettime(CLOCK_MONOTONIC, &before);
    nanosleep(&wait, NULL);
    clock_gettime(CLOCK_MONOTONIC, &after);
    clock_gettime(CLOCK_REALTIME, &wall);
    long slept = (after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000;
    if (slept < ms || slept > ms + 500)
        return fail("idle: asked for %ld ms, slept %ld ms", ms, slept);
    if (wall.tv_sec - start < ms / 1000 - 1 || wall.tv_sec - start > ms / 1000 + 2)
        return fail("idle: the wall clock moved by %ld s", (long)(wall.tv_sec - start));
    return 0;
}
