// SPDX-License-Identifier: Apache-2.0
// The init of a guest that trusts nobody: every page, and every block read from a disk, is verified
// before it is written anew. Prints one line a second for each worker:
//
//   verify: WORKER ops N wrong W
//
// Kernel command line: memory=MIB (verified at random), churn=MIB (allocated, filled, verified,
// freed, over and over, so that free-page reporting has something to report).
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define WORDS (PAGE / 8)
#define BLOCK 65536
#define BLOCKS 512

static uint64_t random_state;

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

// Half of the words of odd units are equal, so that some pages compress and some do not.
static uint64_t expected(uint64_t unit, uint64_t generation, unsigned word)
{
    if ((unit & 1) && (word & 3))
        return generation;
    uint64_t x = unit * 0x9e3779b97f4a7c15u + generation * 0xbf58476d1ce4e5b9u + word;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static void fill(uint64_t *at, uint64_t unit, uint64_t generation, unsigned words)
{
    for (unsigned i = 0; i < words; i++)
        at[i] = expected(unit, generation, i);
}

static uint64_t count_wrong(const char *worker, const uint64_t *at, uint64_t unit,
                            uint64_t generation, unsigned words)
{
    uint64_t wrong = 0, zero = 0;
    for (unsigned i = 0; i < words; i++) {
        wrong += at[i] != expected(unit, generation, i);
        zero += at[i] == 0;
    }
    if (wrong) {
        printf("verify: %s WRONG unit %lu generation %lu: %lu of %u words, %lu are zero\n", worker,
               unit, generation, wrong, words, zero);
        fflush(stdout);
    }
    return wrong;
}

static void report(const char *worker, uint64_t operations, uint64_t wrong)
{
    static time_t last;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec == last)
        return;
    last = now.tv_sec;
    printf("verify: %s ops %lu wrong %lu\n", worker, operations, wrong);
    fflush(stdout);
}

static void *allocate(size_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        printf("verify: no memory for %zu bytes\n", size);
        fflush(stdout);
        exit(1);
    }
    return at;
}

static void verify_memory(size_t mebibytes)
{
    size_t pages = mebibytes * 256;
    uint64_t *memory = allocate(pages * PAGE), *generations = calloc(pages, 8);
    uint64_t operations = 0, wrong = 0;
    for (size_t page = 0; page < pages; page++)
        fill(memory + page * WORDS, page, 0, WORDS);
    for (;;) {
        uint64_t choice = next_random(), page = (choice >> 20) % pages;
        uint64_t *at = memory + page * WORDS;
        wrong += count_wrong("memory", at, page, generations[page], WORDS);
        if (choice & 1)
            fill(at, page, ++generations[page], WORDS);
        report("memory", ++operations, wrong);
        if ((operations & 63) == 0)
            usleep(1000);
    }
}

static void verify_churn(size_t mebibytes)
{
    uint64_t operations = 0, wrong = 0;
    for (uint64_t round = 1;; round++) {
        size_t pages = 1 + (mebibytes * 256) * (round % 4) / 3;
        uint64_t *memory = allocate(pages * PAGE);
        for (size_t page = 0; page < pages; page++)
            fill(memory + page * WORDS, page, round, WORDS);
        for (size_t page = 0; page < pages; page++, operations++) {
            wrong += count_wrong("churn", memory + page * WORDS, page, round, WORDS);
            report("churn", operations, wrong);
        }
        munmap(memory, pages * PAGE);
        usleep(300000);
    }
}

// Random blocks of a disk, read into random places of a buffer. `flags` O_DIRECT or 0.
static void verify_disk(const char *device, const char *worker, int flags)
{
    int disk = open(device, O_RDWR | flags);
    if (disk < 0) {
        printf("verify: no %s\n", device);
        fflush(stdout);
        exit(1);
    }
    enum { PLACES = 64 };
    char *buffer = allocate((size_t)PLACES * BLOCK);
    uint64_t *generations = calloc(BLOCKS, 8), operations = 0, wrong = 0;
    memset(buffer, 1, (size_t)PLACES * BLOCK);
    for (;;) {
        uint64_t choice = next_random(), block = (choice >> 30) % BLOCKS;
        char *at = buffer + (choice >> 12) % PLACES * BLOCK;
        if (generations[block] == 0 || (choice & 3) == 0) {
            fill((uint64_t *)at, block, ++generations[block], BLOCK / 8);
            if (pwrite(disk, at, BLOCK, (off_t)block * BLOCK) != BLOCK)
                perror("pwrite");
        } else {
            memset(at, 0x5a, BLOCK);
            if (pread(disk, at, BLOCK, (off_t)block * BLOCK) != BLOCK)
                perror("pread");
            wrong += count_wrong(worker, (uint64_t *)at, block, generations[block], BLOCK / 8);
        }
        report(worker, ++operations, wrong);
    }
}

static long parameter(const char *line, const char *name)
{
    const char *at = strstr(line, name);
    return at ? atol(at + strlen(name)) : 0;
}

static void load(const char *module)
{
    int file = open(module, O_RDONLY);
    if (file < 0 || syscall(SYS_finit_module, file, "", 0) != 0)
        perror(module);
    close(file);
}

static int child(uint64_t seed)
{
    pid_t pid = fork();
    if (pid == 0)
        random_state = seed * 0x9e3779b97f4a7c15u + 88172645463325252u;
    return pid == 0;
}

int main(void)
{
    static const char *const modules[] = {
        "/virtio_ring.ko", "/virtio.ko", "/virtio_pci_modern_dev.ko", "/virtio_pci_legacy_dev.ko",
        "/virtio_pci.ko", "/virtio_blk.ko", "/virtio_balloon.ko",
    };
    char line[4096] = "";
    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    int file = open("/proc/cmdline", O_RDONLY);
    if (read(file, line, sizeof line - 1) < 0)
        perror("/proc/cmdline");
    for (unsigned i = 0; i < sizeof modules / sizeof *modules; i++)
        load(modules[i]);
    sleep(1);
    if (parameter(line, "memory=") && child(1))
        verify_memory(parameter(line, "memory="));
    if (parameter(line, "churn=") && child(2))
        verify_churn(parameter(line, "churn="));
    if (access("/dev/vda", F_OK) == 0 && child(3))
        verify_disk("/dev/vda", "direct", O_DIRECT);
    if (access("/dev/vdb", F_OK) == 0 && child(4))
        verify_disk("/dev/vdb", "buffered", O_DIRECT);
    if (access("/dev/vdc", F_OK) == 0 && child(5))
        verify_disk("/dev/vdc", "cached", 0);
    printf("verify: ready\n");
    fflush(stdout);
    for (;;)
        wait(NULL);
}
