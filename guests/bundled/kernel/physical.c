/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page allocator.
 *
 * One u32 per page: its references while it is allocated; FREE_PAGE and the number of the next
 * page while it is on a free list. Pages that were never given out are on no list: a cursor walks
 * up through the ranges, so that neither a free page nor its u32 is touched before it is needed.
 *
 * 2 MiB blocks are carved off the top of the highest range, downwards; all that lies above the
 * lowest block is the zone. A quarter of memory is carved at the start. Pages of the zone are given
 * out last, and blocks broken into pages are put together again, so that the number of blocks to be
 * had from otherwise idle memory does not depend on what ran before.
 *
 * The free lists are last in, first out: what was a page table a moment ago is the next data page.
 *
 * Pages lent to the host (balloon.c) count as free. They are never from the zone, and are called
 * back before a page of the zone is given out: the zone does not notice the balloon.
 */
#include "kernel.h"

#define LARGE_PAGES 512
#define NO_PAGE 0
#define FREE_PAGE 0x80000000u
#define LENT_PAGE 0x40000000u /* with the number of the next page that is lent */

static u32 *references; /* by page number */
static struct memory_range whole[16], ranges[16]; /* at the start; what was never given out */
static u32 range_count, cursor_range;
static u64 highest_page, free_count, total_count, zone_count;
static u64 zone_free_count, lent_count;
static u64 zone_start = ~0ull;
static u32 free_pages = NO_PAGE, free_zone_pages = NO_PAGE, free_blocks = NO_PAGE;
static u32 lent_pages = NO_PAGE;
static bool (*shortage_handler)(void);

u64 physical_metadata_bytes(void)
{
    u64 top = boot_info.ranges[boot_info.range_count - 1].end;
    return ((top / PAGE_SIZE) * sizeof(u32) + PAGE_SIZE - 1) & ~(u64)(PAGE_SIZE - 1);
}

static void push_page(u64 physical)
{
    u32 *list = physical >= zone_start ? &free_zone_pages : &free_pages;
    zone_free_count += physical >= zone_start;
    references[physical / PAGE_SIZE] = FREE_PAGE | *list;
    *list = (u32)(physical / PAGE_SIZE);
}

static u64 pop_page(u32 *list)
{
    u64 page = *list;
    *list = references[page] & ~FREE_PAGE;
    zone_free_count -= list == &free_zone_pages;
    return page * PAGE_SIZE;
}

/* `references` of a free block's first page: the next free block, without FREE_PAGE. */
static void push_block(u64 block)
{
    references[block / PAGE_SIZE] = free_blocks;
    free_blocks = (u32)(block / PAGE_SIZE);
    zone_free_count += LARGE_PAGES;
}

static u64 pop_block(void)
{
    u64 block = free_blocks;
    free_blocks = references[block];
    zone_free_count -= LARGE_PAGES;
    return block * PAGE_SIZE;
}

/* A block that was never given out, or 0. */
static u64 carve_block(void)
{
    for (u32 i = range_count; i-- > cursor_range;) {
        u64 top = ranges[i].end & ~(u64)(LARGE_SIZE - 1);
        if (top < ranges[i].start + LARGE_SIZE)
            continue;
        u64 end = ranges[i].end;
        zone_start = ranges[i].end = top - LARGE_SIZE;
        for (u64 page = top; page < end; page += PAGE_SIZE)
            push_page(page); /* the unaligned tail */
        return zone_start;
    }
    return 0;
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
        whole[range_count] = ranges[range_count] = range;
        range_count++;
    }
    u64 block;
    while (zone_count < total_count / 4 / LARGE_PAGES && (block = carve_block())) {
        push_block(block);
        zone_count++;
    }
}

/* Write to every page never given out: to the host, memory that has been in use. */
void physical_soil(void)
{
    for (u32 i = cursor_range; i < range_count; i++)
        for (u64 page = ranges[i].start; page < ranges[i].end; page += PAGE_SIZE)
            *(volatile u64 *)direct(page) = page + 1;
}

/* Give pages that were never allocated to the free list. */
void physical_adopt(u64 start, u64 end)
{
    for (; start < end; start += PAGE_SIZE) {
        push_page(start);
        free_count++;
    }
}

static bool is_all_free(u64 block)
{
    for (u64 i = 0; i < LARGE_PAGES; i++)
        if (!(references[block / PAGE_SIZE + i] & FREE_PAGE))
            return false;
    return true;
}

/* Take the pages of `block`, all free, off the zone's list. */
static void unlink_block(u64 block)
{
    u32 first = (u32)(block / PAGE_SIZE), kept = NO_PAGE, head = NO_PAGE, next;
    for (u32 page = free_zone_pages; page != NO_PAGE; page = next) {
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
    free_zone_pages = head;
    zone_free_count -= LARGE_PAGES;
}

/* A block of the zone whose pages have all come back, or 0. */
static u64 mend_block(void)
{
    for (u32 i = 0; i < range_count; i++) {
        u64 start = whole[i].start > zone_start ? whole[i].start : zone_start;
        start = (start + LARGE_SIZE - 1) & ~(u64)(LARGE_SIZE - 1);
        if (start < ranges[i].end)
            start = ranges[i].end; /* below it was nothing carved, and it is aligned if it moved */
        for (; start + LARGE_SIZE <= whole[i].end; start += LARGE_SIZE) {
            if (start % LARGE_SIZE == 0 && is_all_free(start)) {
                unlink_block(start);
                return start;
            }
        }
    }
    return 0;
}

u64 large_allocate(void)
{
    u64 block = free_blocks != NO_PAGE ? pop_block() : mend_block();
    if (!block)
        block = carve_block();
    if (block) {
        references[block / PAGE_SIZE] = 1;
        free_count -= LARGE_PAGES;
    }
    return block;
}

static void break_free_block(void)
{
    u64 block = pop_block();
    for (u64 i = LARGE_PAGES; i-- > 0;)
        push_page(block + i * PAGE_SIZE);
}

/* A page that is not of the zone, or 0. */
static u64 take_page(void)
{
    while (cursor_range < range_count && ranges[cursor_range].start >= ranges[cursor_range].end)
        cursor_range++;
    if (free_pages != NO_PAGE)
        return pop_page(&free_pages);
    if (cursor_range == range_count)
        return 0;
    u64 page = ranges[cursor_range].start;
    ranges[cursor_range].start += PAGE_SIZE;
    return page;
}

void pages_on_shortage(bool (*handler)(void))
{
    shortage_handler = handler;
}

u64 page_allocate(void)
{
    u64 page = take_page();
    if (!page && shortage_handler && shortage_handler())
        page = take_page();
    if (!page) {
        if (free_zone_pages == NO_PAGE && free_blocks != NO_PAGE)
            break_free_block();
        if (free_zone_pages == NO_PAGE)
            return 0;
        page = pop_page(&free_zone_pages);
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
        push_block(physical);
        free_count += LARGE_PAGES;
    }
}

void large_break(u64 physical)
{
    ASSERT(references[physical / PAGE_SIZE] == 1);
    for (u64 i = 0; i < LARGE_PAGES; i++)
        references[physical / PAGE_SIZE + i] = 1;
}

u64 page_borrow(u64 kept)
{
    if (free_count - zone_free_count <= kept)
        return 0;
    u64 page = take_page();
    if (page) {
        references[page / PAGE_SIZE] = 1;
        free_count--;
    }
    return page;
}

void page_lend(u64 physical)
{
    references[physical / PAGE_SIZE] = LENT_PAGE | lent_pages;
    lent_pages = (u32)(physical / PAGE_SIZE);
    lent_count++;
}

u64 page_recall(void)
{
    u64 page = lent_pages;
    if (page == NO_PAGE)
        return 0;
    lent_pages = references[page] & ~LENT_PAGE;
    lent_count--;
    references[page] = 1;
    return page * PAGE_SIZE;
}

void pages_recall_all(void)
{
    for (u64 page; (page = page_recall());)
        page_release(page);
}

u64 pages_lent(void)
{
    return lent_count;
}

u64 pages_free(void)
{
    return free_count + lent_count;
}

/* Blocks to be had whenever nothing runs. */
u64 blocks_assured(void)
{
    return zone_count;
}

u64 pages_total(void)
{
    return total_count;
}
