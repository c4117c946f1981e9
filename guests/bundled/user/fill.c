/* SPDX-License-Identifier: Apache-2.0 */
/* fill, random and idle: one process, much memory. */
#include "user.h"

/*
 * The content of a word. Of each 128 words only `varied` differ from the others of their page: what
 * is left is content that compresses, as most memory does.
 */
static u64 pattern(u64 seed, u64 word, u64 varied)
{
    return mix(seed, word % 128 < varied ? word : word / WORDS_PER_PAGE);
}

static void fill_pages(u64 address, u64 pages, u64 seed, u64 varied)
{
    u64 *words = (u64 *)address;
    for (u64 i = 0; i < pages * WORDS_PER_PAGE; i++)
        words[i] = pattern(seed, i, varied);
}

static void verify_pages(u64 address, u64 pages, u64 seed, u64 varied, const char *what)
{
    const volatile u64 *words = (const volatile u64 *)address;
    for (u64 i = 0; i < pages * WORDS_PER_PAGE; i++) {
        u64 expected = pattern(seed, i, varied), found = words[i];
        if (found != expected)
            fail(what, (u64)&words[i], expected, found);
    }
}

/* Odd passes are verified upwards, even ones downwards in strides of a prime number of pages. */
static void verify_scattered(u64 address, u64 pages, u64 seed, u64 varied)
{
    u64 stride = 1021;
    while (pages % stride == 0)
        stride += 2;
    u64 page = pages - 1;
    for (u64 i = 0; i < pages; i++) {
        const volatile u64 *words = (const volatile u64 *)(address + page * PAGE_SIZE);
        for (u64 word = WORDS_PER_PAGE; word-- > 0;) {
            u64 expected = pattern(seed, page * WORDS_PER_PAGE + word, varied), found = words[word];
            if (found != expected)
                fail("fill: verify in scattered order", (u64)&words[word], expected, found);
        }
        page = (page + stride) % pages;
    }
}

u64 program_fill(u64 seed, u64 pages, u64 passes, u64 flags, u64 varied)
{
    map(USER_HEAP, pages * PAGE_SIZE, PROT_READ | PROT_WRITE, flags);
    for (u64 pass = 1; pass <= passes; pass++) {
        fill_pages(USER_HEAP, pages, seed + pass, varied);
        print("fill: pass %u/%u: %u pages written", pass, passes, pages);
        verify_pages(USER_HEAP, pages, seed + pass, varied, "fill: verify");
        verify_scattered(USER_HEAP, pages, seed + pass, varied);
        print("fill: pass %u/%u: %u pages verified", pass, passes, pages);
    }
    unmap(USER_HEAP, pages * PAGE_SIZE, FLUSH_INVLPG);
    return 0;
}

/* Each word holds 0 (version 0: never written) or mix(seed ^ version, its number). */
static u64 content(u64 seed, u64 word, u8 version)
{
    return version ? mix(seed ^ (u64)version << 32, word) : 0;
}

u64 program_random(u64 seed, u64 pages, u64 operations, u64 flags, u64 unused)
{
    (void)unused;
    u64 words = pages * WORDS_PER_PAGE, state = seed | 1, writes = 0;
    u64 version_pages = (words + PAGE_SIZE - 1) / PAGE_SIZE;
    u64 data = USER_HEAP, versions_at = USER_HEAP + ((pages * PAGE_SIZE + LARGE_SIZE) &
                                                    ~(u64)(LARGE_SIZE - 1));
    volatile u64 *const cells = (volatile u64 *)data;
    u8 *const versions = (u8 *)versions_at;
    map(data, pages * PAGE_SIZE, PROT_READ | PROT_WRITE, flags);
    map(versions_at, version_pages * PAGE_SIZE, PROT_READ | PROT_WRITE, 0);
    for (u64 i = 0; i < operations; i++) {
        u64 choice = next_random(&state);
        u64 word = (choice >> 8) % words;
        u64 expected = content(seed, word, versions[word]), found = cells[word];
        if (found != expected)
            fail("random: read", (u64)&cells[word], expected, found);
        if (choice & 1) {
            versions[word]++;
            cells[word] = content(seed, word, versions[word]);
            writes++;
        }
    }
    print("random: %u operations over %u pages, %u writes", operations, pages, writes);
    for (u64 word = 0; word < words; word++) {
        u64 expected = content(seed, word, versions[word]), found = cells[word];
        if (found != expected)
            fail("random: final sweep", (u64)&cells[word], expected, found);
    }
    print("random: %u words verified", words);
    return 0;
}

u64 program_idle(u64 seed, u64 pages, u64 ticks, u64 varied, u64 unused)
{
    (void)unused;
    map(USER_HEAP, pages * PAGE_SIZE, PROT_READ | PROT_WRITE, 0);
    fill_pages(USER_HEAP, pages, seed, varied);
    print("idle: %u pages written, waiting for %u ticks", pages, ticks);
    call4(CALL_SLEEP, ticks, 0, 0, 0);
    verify_pages(USER_HEAP, pages, seed, varied, "idle: verify");
    print("idle: %u pages verified", pages);
    return 0;
}
