/* SPDX-License-Identifier: Apache-2.0 */
/* churn: every kind of page-table edit, over and over, with the content verified after each. */
#include "user.h"

#define RW (PROT_READ | PROT_WRITE)
#define A (USER_HEAP)
#define B (USER_HEAP + 0x8000000ull)
#define FAR_A 0x100000000000ull /* level-3 entries of their own */
#define FAR_B (FAR_A + 0x40000000ull)
#define SPARSE 0x200000000000ull
#define GIB 0x40000000ull
#define PAGES 8
#define BYTES (PAGES * (u64)PAGE_SIZE)

/* Untouched memory reads as zero, whatever the pages held before. */
static void map_and_unmap(u64 seed, u64 flush)
{
    expect_page_fault(probe_read, A, 4, "churn: read of unmapped memory");
    map(A, BYTES, RW, 0); /* not present -> present: nothing to flush */
    for (u64 page = 0; page < PAGES; page++)
        verify_value(A + page * PAGE_SIZE + seed % 512 * 8, 0, "churn: fresh page by read");
    fill_range(A, PAGES, seed);
    verify_range(A, PAGES, seed, "churn: after map");
    unmap(A, BYTES, flush);
    expect_page_fault(probe_read, A + PAGE_SIZE, 4, "churn: read after unmap");
    expect_page_fault(probe_write, A + PAGE_SIZE, 6, "churn: write after unmap");
    map(A, BYTES, RW, 0);
    for (u64 at = A; at < A + BYTES; at += 8)
        verify_value(at, 0, "churn: page after remap");
    unmap(A, BYTES, flush);
}

static void alias(u64 seed, u64 flush)
{
    map(A, BYTES, RW, 0);
    fill_range(A, PAGES, seed);
    require(CALL_ALIAS, A, B, BYTES, RW);
    verify_range(B, PAGES, seed, "churn: alias after map");
    fill_range(B, PAGES, seed + 1);
    verify_range(A, PAGES, seed + 1, "churn: original after write to alias");
    for (u64 at = 0; at < BYTES; at += PAGE_SIZE) { /* back and forth within one page */
        store(A + at, seed + at);
        verify_value(B + at, seed + at, "churn: alias, word by word");
        store(B + at, mix(seed + 1, at / 8));
        verify_value(A + at, mix(seed + 1, at / 8), "churn: original, word by word");
    }
    unmap(A, BYTES, flush);
    expect_page_fault(probe_read, A, 4, "churn: original unmapped");
    verify_range(B, PAGES, seed + 1, "churn: alias after unmap of the original");
    unmap(B, BYTES, flush);
}

static void protection(u64 seed, u64 flush)
{
    map(A, BYTES, RW, 0);
    fill_range(A, PAGES, seed);
    protect(A, BYTES, PROT_READ, flush);
    expect_page_fault(probe_write, A + seed % PAGES * PAGE_SIZE, 7, "churn: write to read-only");
    verify_range(A, PAGES, seed, "churn: read-only");
    protect(A, BYTES, RW, flush); /* a raise: the kernel flushes nothing */
    fill_range(A, PAGES, seed + 1);
    verify_range(A, PAGES, seed + 1, "churn: writable again");
    expect_page_fault(probe_fetch, A, 0x15, "churn: fetch from data");
    protect(A, BYTES, PROT_READ, flush);
    expect_page_fault(probe_write, A, 7, "churn: write to read-only again");
    unmap(A, BYTES, flush);
}

static void exchange(u64 seed, u64 flush)
{
    map(A, BYTES, RW, 0);
    map(B, BYTES, RW, 0);
    fill_range(A, PAGES, seed);
    fill_range(B, PAGES, seed + 1);
    require(CALL_EXCHANGE, A, B, BYTES, flush);
    verify_range(A, PAGES, seed + 1, "churn: exchanged");
    verify_range(B, PAGES, seed, "churn: exchanged, other side");
    fill_range(A, PAGES, seed + 2);
    require(CALL_EXCHANGE, A, B, BYTES, flush);
    verify_range(A, PAGES, seed, "churn: exchanged back");
    verify_range(B, PAGES, seed + 2, "churn: exchanged back, other side");
    unmap(A, BYTES, flush);
    unmap(B, BYTES, flush);
}

/* One store moves 2 MiB or 1 GiB. */
static void exchange_tables(u64 seed, u64 level, u64 flush)
{
    map(FAR_A, BYTES, RW, 0);
    map(FAR_B, BYTES, RW, 0);
    fill_range(FAR_A, PAGES, seed);
    fill_range(FAR_B, PAGES, seed + 1);
    require(CALL_EXCHANGE_TABLES, FAR_A, FAR_B, level, flush);
    verify_range(FAR_A, PAGES, seed + 1, "churn: tables exchanged");
    verify_range(FAR_B, PAGES, seed, "churn: tables exchanged, other side");
    fill_range(FAR_B, PAGES, seed + 2);
    require(CALL_EXCHANGE_TABLES, FAR_A, FAR_B, level, flush);
    verify_range(FAR_A, PAGES, seed + 2, "churn: tables exchanged back");
    verify_range(FAR_B, PAGES, seed + 1, "churn: tables exchanged back, other side");
    unmap(FAR_A, BYTES, flush);
    unmap(FAR_B, BYTES, flush);
}

static void protect_table(u64 seed, u64 level, u64 flush)
{
    map(FAR_A, BYTES, RW, 0);
    fill_range(FAR_A, PAGES, seed);
    require(CALL_PROTECT_TABLE, FAR_A, level, 0, flush);
    expect_page_fault(probe_write, FAR_A, 7, "churn: write below a read-only table");
    verify_range(FAR_A, PAGES, seed, "churn: below a read-only table");
    require(CALL_PROTECT_TABLE, FAR_A, level, 1, flush);
    fill_range(FAR_A, PAGES, seed + 1);
    verify_range(FAR_A, PAGES, seed + 1, "churn: below a writable table");
    unmap(FAR_A, BYTES, flush);
}

static void large_and_small(u64 seed, u64 flush)
{
    map(A, LARGE_SIZE, RW, MAP_LARGE);
    fill_range(A, 512, seed);
    if (!(call4(CALL_MAPPING, A, 0, 0, 0) & MAPPING_LARGE))
        fail("churn: no large page", A, MAPPING_LARGE, 0);
    require(CALL_SPLIT, A, flush, 0, 0);
    verify_range(A, 512, seed, "churn: split");
    store(A + 0x5008, seed);
    require(CALL_COLLAPSE, A, flush, 0, 0);
    verify_value(A + 0x5008, seed, "churn: collapsed");
    store(A + 0x5008, mix(seed, 0x5008 / 8));
    verify_range(A, 512, seed, "churn: collapsed");
    protect(A, LARGE_SIZE, PROT_READ, flush);
    expect_page_fault(probe_write, A + 0x12340, 7, "churn: write to a read-only large page");
    protect(A, LARGE_SIZE, RW, flush);
    require(CALL_SPLIT, A, flush, 0, 0);
    unmap(A, LARGE_SIZE, flush);
    map(A, LARGE_SIZE, RW, MAP_LARGE);
    verify_value(A + 0x5008, 0, "churn: a fresh large page");
    unmap(A, LARGE_SIZE, flush);
}

static void rewrite_in_child(u32 index, u64 seed)
{
    verify_range(A, PAGES, seed, "churn: inherited");
    fill_range(A, PAGES, seed + 2 + index);
    call4(CALL_YIELD, 0, 0, 0, 0);
    verify_range(A, PAGES, seed + 2 + index, "churn: child's own");
}

static void fork_and_copy(u64 seed, u64 flush)
{
    map(A, BYTES, RW, 0);
    fill_range(A, PAGES, seed);
    in_children(3, rewrite_in_child, seed);
    verify_range(A, PAGES, seed, "churn: parent after fork");
    fill_range(A, PAGES, seed + 1); /* the last reference: writable again without a copy */
    verify_range(A, PAGES, seed + 1, "churn: parent's own");
    unmap(A, BYTES, flush);
}

static void write_large_in_child(u32 index, u64 seed)
{
    store(A + 0x3000, seed + index);
    verify_value(A + 0x1ff000, mix(seed, 0x1ff000 / 8), "churn: large page, inherited");
    call4(CALL_YIELD, 0, 0, 0, 0);
    verify_value(A + 0x3000, seed + index, "churn: large page, child's own");
}

static void fork_large(u64 seed, u64 flush)
{
    map(A, LARGE_SIZE, RW, MAP_LARGE);
    fill_range(A, 512, seed);
    in_children(2, write_large_in_child, seed);
    verify_range(A, 512, seed, "churn: large page after fork");
    unmap(A, LARGE_SIZE, flush);
}

/* Each page here has tables of its own; afterwards they are data, and data becomes tables. */
static void reuse_tables(u64 seed, u64 flush)
{
    for (u64 i = 0; i < 4; i++) {
        map(SPARSE + i * GIB, PAGE_SIZE, RW, 0);
        store(SPARSE + i * GIB, seed + i);
    }
    for (u64 i = 0; i < 4; i++)
        verify_value(SPARSE + i * GIB, seed + i, "churn: sparse");
    for (u64 i = 0; i < 4; i++)
        unmap(SPARSE + i * GIB, PAGE_SIZE, flush);
    map(A, BYTES * 2, RW, 0);
    fill_range(A, PAGES * 2, seed); /* on pages that were tables */
    for (u64 i = 0; i < 4; i++)
        expect_page_fault(probe_read, SPARSE + i * GIB, 4, "churn: sparse, unmapped");
    verify_range(A, PAGES * 2, seed, "churn: data where tables were");
    unmap(A, BYTES * 2, flush);
}

u64 program_churn(u64 seed, u64 rounds, u64 large, u64 unused1, u64 unused2)
{
    (void)unused1;
    (void)unused2;
    u64 free_before = (u64)call4(CALL_FREE_PAGES, 0, 0, 0, 0);
    for (u64 round = 0; round < rounds; round++) {
        u64 own = seed + round * 0x100, flush = round % 2 ? FLUSH_CR3 : FLUSH_INVLPG;
        map_and_unmap(own, flush);
        alias(own, flush);
        protection(own, flush);
        exchange(own, flush);
        exchange_tables(own, 2 + round / 2 % 2, flush);
        protect_table(own, 2 + round % 3, flush);
        fork_and_copy(own, flush);
        reuse_tables(own, flush);
        if (large && round % 4 < 2) {
            large_and_small(own, flush);
            fork_large(own, flush);
        }
    }
    u64 free_after = (u64)call4(CALL_FREE_PAGES, 0, 0, 0, 0);
    if (free_after != free_before)
        fail("churn: pages leaked", 0, free_before, free_after);
    print("churn: %u rounds verified%s", rounds, large ? ", large pages too" : "");
    return 0;
}
