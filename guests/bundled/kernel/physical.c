/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page allocator.
 *
 * One u32 per page: its references while it is allocated, the number of the next free page while
 * it is on the free list. Pages that were never given out are on no list: a cursor walks up
 * through the ranges, so that neither a free page nor its u32 is touched before it is needed.
 * 2 MiB blocks come from the top of the highest range, downwards; blocks that were broken into
 * pages are put together again when there is no other. The free lists are last in,
 * first out: what was a page table a moment ago is the next data page.
 */
#include "kernel.h"

#define LARGE_PAGES 512
#define NO_PAGE 0
#define FREE_PAGE 0x80000000u /* in `references`: on the free list, the rest is the next page */
#define BROKEN_COUNT 512

static u32 *references; /* by page number; physical pages 0 .. highest */
static struct memory_range ranges[16];
static u32 range_count, cursor_range;
static u64 highest_page, free_count, total_count;
static u32 free_pages = NO_PAGE, free_blocks = NO_PAGE;
static u64 broken[BROKEN_COUNT]; /* 2 MiB blocks in use as pages; 0 = unused place */

u64 physical_metadata_bytes(void)
{
    u64 top = boot_info.ranges[boot_info.range_count - 1].end;
    return ((top / PAGE_SIZE) * sizeof(u32) + PAGE_SIZE - 1) & ~(u64)(PAGE_SIZE - 1);
}

/* Everything below `metadata_start` + the array is in use, back to 1 MiB. */
void physical_initialize(u64 metadata_start)
{
    u64 used_end = metadata_start + physical_metadata_bytes();
    references = (u32 *)direct(metadata_start);
    highest_page = boot_info.ranges[boot_info.range_count - 1].end / PAGE_SIZE;
    for (u32 i = 0; i < boot_info.range_count; i++) {
        struct memory_range range = boot_info.ranges[i];
        total_count += (range.end - range.start) / PAGE_SIZE;
        if (range.start < used_end && range.end > 0x100000)
            range.start = used_end;
        if (range.start >= range.end)
            continue;
        free_count += (range.end - range.start) / PAGE_SIZE;
        ranges[range_count++] = range;
    }
}

static void push_page(u64 physical)
{
    references[physical / PAGE_SIZE] = FREE_PAGE | free_pages;
    free_pages = (u32)(physical / PAGE_SIZE);
}

static void remember_broken(u64 block)
{
    for (u32 i = 0; i < BROKEN_COUNT; i++) {
        if (broken[i] == 0) {
            broken[i] = block;
            return;
        }
    }
}

static bool is_all_free(u64 block)
{
    for (u64 i = 0; i < LARGE_PAGES; i++)
        if (!(references[block / PAGE_SIZE + i] & FREE_PAGE))
            return false;
    return true;
}

/* Take the pages of `block`, all free, off the free list. */
static void unlink_block(u64 block)
{
    u32 first = (u32)(block / PAGE_SIZE), kept = NO_PAGE, next;
    u32 head = NO_PAGE;
    for (u32 page = free_pages; page != NO_PAGE; page = next) {
        next = references[page] & ~FREE_PAGE;
        if (page >= first && page < first + LARGE_PAGES)
            continue;
        if (kept == NO_PAGE)
            head = page;
        else
            references[kept] = FREE_PAGE | page;
        kept = page;
    }
    if (kept != NO_PAGE)
        references[kept] = FREE_PAGE | NO_PAGE;
    free_pages = head;
}

static u64 mend_block(void)
{
    for (u32 i = 0; i < BROKEN_COUNT; i++) {
        u64 block = broken[i];
        if (block && is_all_free(block)) {
            unlink_block(block);
            broken[i] = 0;
            return block;
        }
    }
    return 0;
}

/* Give pages that were never allocated to the free list. */
void physical_adopt(u64 start, u64 end)
{
    for (; start < end; start += PAGE_SIZE) {
        push_page(start);
        free_count++;
    }
}

u64 large_allocate(void)
{
    u64 block = 0;
    if (free_blocks != NO_PAGE) {
        block = (u64)free_blocks * PAGE_SIZE;
        free_blocks = references[free_blocks];
    }
    for (u32 i = range_count; !block && i-- > cursor_range;) {
        u64 top = ranges[i].end & ~(u64)(LARGE_SIZE - 1);
        if (top < ranges[i].start + LARGE_SIZE)
            continue;
        for (u64 page = top; page < ranges[i].end; page += PAGE_SIZE)
            push_page(page); /* the unaligned tail */
        block = top - LARGE_SIZE;
        ranges[i].end = block;
    }
    if (!block)
        block = mend_block();
    if (block) {
        references[block / PAGE_SIZE] = 1;
        free_count -= LARGE_PAGES;
    }
    return block;
}

u64 page_allocate(void)
{
    u64 page = 0;
    while (cursor_range < range_count && ranges[cursor_range].start >= ranges[cursor_range].end)
        cursor_range++;
    if (free_pages != NO_PAGE) {
        page = (u64)free_pages * PAGE_SIZE;
        free_pages = references[free_pages] & ~FREE_PAGE;
    } else if (cursor_range < range_count) {
        page = ranges[cursor_range].start;
        ranges[cursor_range].start += PAGE_SIZE;
    } else if (free_blocks != NO_PAGE) {
        u64 block = (u64)free_blocks * PAGE_SIZE;
        free_blocks = references[free_blocks];
        for (u64 i = LARGE_PAGES; i-- > 1;)
            push_page(block + i * PAGE_SIZE);
        remember_broken(block);
        page = block;
    } else {
        return 0;
    }
    references[page / PAGE_SIZE] = 1;
    free_count--;
    return page;
}

u64 page_allocate_zeroed(void)
{
    u64 page = page_allocate();
    if (page)
        memset(direct(page), 0, PAGE_SIZE);
    return page;
}

void page_take(u64 physical)
{
    references[physical / PAGE_SIZE]++;
}

u32 page_references(u64 physical)
{
    return references[physical / PAGE_SIZE];
}

void page_release(u64 physical)
{
    ASSERT(physical && physical / PAGE_SIZE < highest_page);
    ASSERT(references[physical / PAGE_SIZE] - 1 < FREE_PAGE - 1);
    if (--references[physical / PAGE_SIZE] == 0) {
        push_page(physical);
        free_count++;
    }
}

void large_release(u64 physical)
{
    ASSERT(physical && physical % LARGE_SIZE == 0);
    ASSERT(references[physical / PAGE_SIZE] - 1 < FREE_PAGE - 1);
    if (--references[physical / PAGE_SIZE] == 0) {
        references[physical / PAGE_SIZE] = free_blocks;
        free_blocks = (u32)(physical / PAGE_SIZE);
        free_count += LARGE_PAGES;
    }
}

void large_break(u64 physical)
{
    ASSERT(references[physical / PAGE_SIZE] == 1);
    for (u64 i = 0; i < LARGE_PAGES; i++)
        references[physical / PAGE_SIZE + i] = 1;
    remember_broken(physical);
}

u64 pages_free(void)
{
    return free_count;
}

u64 pages_total(void)
{
    return total_count;
}
