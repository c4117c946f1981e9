/* SPDX-License-Identifier: Apache-2.0 */
/* identical: processes whose pages are equal until each leaves its mark in some of them. */
#include "user.h"

#define COMMON_SEED 0x1d3
#define ZERO_EVERY 4 /* pages 3, 7, 11 ... are zero */
#define MARK_EVERY 3 /* pages 0, 3, 6 ... get a mark */

static u64 common_word(u64 page, u64 word)
{
    return page % ZERO_EVERY == ZERO_EVERY - 1 ? 0 : mix(COMMON_SEED, page * WORDS_PER_PAGE + word);
}

static u64 mark_of(u64 index, u64 page)
{
    return 0xa11ce00000000000u | index << 32 | page;
}

static void write_all(u64 pages)
{
    for (u64 page = 0; page < pages; page++)
        for (u64 word = 0; word < WORDS_PER_PAGE; word++)
            store(USER_HEAP + page * PAGE_SIZE + word * 8, common_word(page, word));
}

/* `marked`: our own marks must be there, and no one else's. */
static void verify_all(u64 index, u64 pages, bool marked)
{
    for (u64 page = 0; page < pages; page++) {
        u64 mark_at = marked && page % MARK_EVERY == 0 ? (page * 7 + 5) % WORDS_PER_PAGE : ~0ull;
        for (u64 word = 0; word < WORDS_PER_PAGE; word++) {
            u64 expected = word == mark_at ? mark_of(index, page) : common_word(page, word);
            verify_value(USER_HEAP + page * PAGE_SIZE + word * 8, expected,
                         marked ? "identical: after marks" : "identical: before marks");
        }
    }
}

u64 program_identical(u64 index, u64 count, u64 pages, u64 rounds, u64 hold)
{
    map(USER_HEAP, pages * PAGE_SIZE, PROT_READ | PROT_WRITE, 0);
    write_all(pages);
    for (u64 round = 0; round < rounds; round++) {
        call4(CALL_SLEEP, hold, 0, 0, 0);
        verify_all(index, pages, false);
    }
    call4(CALL_BARRIER, count, 0, 0, 0);
    for (u64 page = 0; page < pages; page += MARK_EVERY)
        store(USER_HEAP + page * PAGE_SIZE + (page * 7 + 5) % WORDS_PER_PAGE * 8,
              mark_of(index, page));
    call4(CALL_BARRIER, count, 0, 0, 0);
    for (u64 round = 0; round < rounds; round++) {
        verify_all(index, pages, true);
        call4(CALL_SLEEP, hold, 0, 0, 0);
    }
    print("identical: process %u/%u: %u pages verified", index + 1, count, pages);
    return 0;
}
