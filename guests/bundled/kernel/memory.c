/* SPDX-License-Identifier: Apache-2.0 */
/*
 * User memory: regions say what a process may do where, page tables what it has so far.
 *
 * Untouched memory has no entries. A read maps the one zero page, a write a page of its own; fork
 * lets both sides share every page read-only until one writes. Making an entry present, or giving
 * it more rights, needs no invalidation: at worst the processor faults once more, and the fault
 * finds nothing to do. Any other edit is flushed before the page it concerned can be reused.
 */
#include "kernel.h"
#include "processor.h"

#define ERROR_PRESENT 0x1
#define ERROR_WRITE 0x2
#define ERROR_RESERVED 0x8
#define ERROR_FETCH 0x10

#define MAXIMUM_REPEATS 1000

extern const char user_image_start[], user_image_end[];

static u64 zero_page;

void memory_initialize(void)
{
    zero_page = page_allocate_zeroed();
}

u64 protection_bits(u8 protection)
{
    u64 bits = ENTRY_PRESENT | ENTRY_USER;
    if (protection & PROT_WRITE)
        bits |= ENTRY_WRITABLE;
    if (!(protection & PROT_EXECUTE))
        bits |= ENTRY_NX;
    return bits;
}

struct region *memory_region(struct process *process, u64 address)
{
    for (int i = 0; i < REGION_COUNT; i++) {
        struct region *region = &process->regions[i];
        if (address >= region->start && address < region->end)
            return region;
    }
    return NULL;
}

/* Exclusive means: no one else would see a write. */
static bool is_exclusive(u64 physical)
{
    return physical != zero_page && page_references(physical) == 1;
}

static bool fill_absent(struct process *process, struct region *region, u64 address, bool write)
{
    u64 bits = protection_bits(region->protection);
    u64 block = address & ~(u64)(LARGE_SIZE - 1);
    if (region->flags & MAP_LARGE && block >= region->start && block + LARGE_SIZE <= region->end) {
        u64 *entry = paging_entry(process->root, address, 2, true);
        u64 large = entry && !(*entry & ENTRY_PRESENT) ? large_allocate() : 0;
        if (large) {
            memset(direct(large), 0, LARGE_SIZE);
            *entry = large | bits | ENTRY_LARGE;
            return true;
        }
    }
    u64 *entry = paging_entry(process->root, address, 1, true);
    if (!entry)
        return false;
    if (!write) {
        page_take(zero_page);
        *entry = zero_page | (bits & ~(u64)ENTRY_WRITABLE);
        return true;
    }
    u64 page = page_allocate_zeroed();
    if (page)
        *entry = page | bits;
    return page != 0;
}

static bool copy_small(u64 *entry, u64 bits, u64 address)
{
    u64 shared = *entry & ENTRY_ADDRESS;
    u64 page = page_allocate();
    if (!page)
        return false;
    memcpy(direct(page), direct(shared), PAGE_SIZE);
    *entry = page | bits | ENTRY_ACCESSED | ENTRY_DIRTY;
    invalidate_page(address);
    page_release(shared);
    return true;
}

static bool copy_large(u64 *entry, u64 bits, u64 address)
{
    u64 shared = *entry & ENTRY_ADDRESS;
    u64 large = large_allocate();
    if (!large)
        return false;
    memcpy(direct(large), direct(shared), LARGE_SIZE);
    *entry = large | bits | ENTRY_LARGE | ENTRY_ACCESSED | ENTRY_DIRTY;
    invalidate_page(address);
    large_release(shared);
    return true;
}

/* No 2 MiB block is free: copy a shared large page into small ones. */
static bool copy_large_to_small(u64 *entry, u64 bits, u64 address)
{
    u64 shared = *entry & ENTRY_ADDRESS;
    u64 table = page_allocate_zeroed();
    if (!table)
        return false;
    u64 *entries = direct(table);
    for (u64 i = 0; i < 512; i++) {
        u64 page = page_allocate();
        if (!page) {
            for (u64 j = 0; j < i; j++)
                page_release(entries[j] & ENTRY_ADDRESS);
            page_release(table);
            return false;
        }
        memcpy(direct(page), direct(shared + i * PAGE_SIZE), PAGE_SIZE);
        entries[i] = page | bits;
    }
    *entry = table | ENTRY_PRESENT | ENTRY_WRITABLE | ENTRY_USER;
    invalidate_page(address);
    large_release(shared);
    return true;
}

static bool break_sharing(u64 *entry, int level, u64 bits, u64 address)
{
    u64 physical = *entry & ENTRY_ADDRESS;
    if (is_exclusive(physical)) {
        *entry |= ENTRY_WRITABLE; /* a raise: no invalidation */
        return true;
    }
    if (level == 1)
        return copy_small(entry, bits, address);
    return copy_large(entry, bits, address) || copy_large_to_small(entry, bits, address);
}

/* True if the access is legitimate and may be tried again. */
bool memory_resolve(struct process *process, u64 address, u64 error)
{
    struct region *region = memory_region(process, address);
    if (!region || error & ERROR_RESERVED)
        return false;
    u8 needed = error & ERROR_WRITE ? PROT_WRITE : error & ERROR_FETCH ? PROT_EXECUTE : PROT_READ;
    if (!(region->protection & needed))
        return false;
    int level;
    u64 *entry = paging_leaf(process->root, address, &level);
    if (!entry)
        return fill_absent(process, region, address, needed == PROT_WRITE);
    if (needed == PROT_WRITE && !(*entry & ENTRY_WRITABLE))
        return break_sharing(entry, level, protection_bits(region->protection), address);
    if (process->last_fault != address)
        process->repeated_faults = 0;
    process->last_fault = address;
    return ++process->repeated_faults < MAXIMUM_REPEATS; /* a stale translation: just retry */
}

static struct region *add_region(struct process *process, u64 start, u64 end, u64 protection,
                                 u64 flags)
{
    for (int i = 0; i < REGION_COUNT; i++) {
        struct region *region = &process->regions[i];
        if (region->start == region->end) {
            *region = (struct region){start, end, (u8)protection, (u8)flags};
            return region;
        }
    }
    return NULL;
}

/* Map the programs, shared by all processes, and leave room for a stack. */
void memory_start(struct process *process)
{
    u64 text_pages = ((const u64 *)user_image_start)[1];
    u64 image_pages = (u64)(user_image_end - user_image_start) / PAGE_SIZE;
    u64 physical = (u64)user_image_start - KERNEL_BASE;
    for (u64 i = 0; i < image_pages; i++) {
        u64 *entry = paging_entry(process->root, USER_IMAGE + i * PAGE_SIZE, 1, true);
        ASSERT(entry != NULL);
        u64 rights = i < text_pages ? PROT_READ | PROT_EXECUTE : PROT_READ;
        *entry = (physical + i * PAGE_SIZE) | protection_bits((u8)rights);
    }
    add_region(process, USER_STACK_TOP - USER_STACK_SIZE, USER_STACK_TOP, PROT_READ | PROT_WRITE,
               0);
}

static bool valid(u64 address, u64 length)
{
    return length && address % PAGE_SIZE == 0 && length % PAGE_SIZE == 0 &&
           address >= USER_HEAP && address < USER_TOP && length <= USER_TOP - address;
}

s64 memory_map(struct process *process, u64 address, u64 length, u64 protection, u64 flags)
{
    if (!valid(address, length))
        return ERROR_INVALID;
    for (int i = 0; i < REGION_COUNT; i++) {
        struct region *region = &process->regions[i];
        if (region->start < address + length && address < region->end)
            return ERROR_INVALID;
    }
    return add_region(process, address, address + length, protection, flags) ? 0
                                                                             : ERROR_NO_MEMORY;
}

static void release_leaf(u64 entry, int level)
{
    if (level == 2)
        large_release(entry & ENTRY_ADDRESS);
    else
        page_release(entry & ENTRY_ADDRESS);
}

/* Take every entry of the range away. A page is given back only after it has been flushed. */
static void clear_range(struct process *process, u64 start, u64 end, u64 flush)
{
    for (u64 at = start; at < end;) {
        int level = 0;
        u64 step = PAGE_SIZE;
        u64 *entry = paging_leaf(process->root, at, &level);
        if (entry) {
            u64 old = *entry;
            *entry = 0;
            paging_flush(at, PAGE_SIZE, flush);
            release_leaf(old, level);
        }
        if (level == 2) /* a large page, or no page table */
            step = LARGE_SIZE - at % LARGE_SIZE;
        at += step;
        if (at % LARGE_SIZE == 0 || at >= end)
            paging_prune(process->root, at - 1);
    }
}

s64 memory_unmap(struct process *process, u64 address, u64 length, u64 flush)
{
    struct region *region = memory_region(process, address);
    if (!valid(address, length) || !region || region->start != address ||
        region->end != address + length)
        return ERROR_INVALID;
    clear_range(process, address, address + length, flush);
    *region = (struct region){0};
    return 0;
}

/* Entries follow at once; a shared page stays read-only until a write breaks the sharing. */
s64 memory_protect(struct process *process, u64 address, u64 length, u64 protection, u64 flush)
{
    struct region *region = memory_region(process, address);
    if (!valid(address, length) || !region || region->start != address ||
        region->end != address + length)
        return ERROR_INVALID;
    u64 bits = protection_bits((u8)protection);
    bool lowered = region->protection & ~protection;
    region->protection = (u8)protection;
    for (u64 at = address; at < address + length;) {
        int level = 0;
        u64 *entry = paging_leaf(process->root, at, &level);
        if (entry) {
            u64 rights = bits;
            if (!is_exclusive(*entry & ENTRY_ADDRESS))
                rights &= ~(u64)ENTRY_WRITABLE;
            *entry = (*entry & ~(ENTRY_NX | ENTRY_WRITABLE)) | rights;
        }
        at += level == 2 ? LARGE_SIZE - at % LARGE_SIZE : PAGE_SIZE;
    }
    if (lowered)
        paging_flush(address, length, flush);
    return 0;
}

/* Share every page, read-only on both sides. The parent's tables are the ones in CR3. */
void memory_fork(struct process *parent, struct process *child)
{
    for (int i = 0; i < REGION_COUNT; i++) {
        struct region region = child->regions[i] = parent->regions[i];
        for (u64 at = region.start; at < region.end;) {
            int level = 0;
            u64 *entry = paging_leaf(parent->root, at, &level);
            if (entry) {
                u64 *copy = paging_entry(child->root, at, level, true);
                if (!copy)
                    fail("fork: no memory for page tables", at, 1, 0);
                *entry &= ~(u64)ENTRY_WRITABLE;
                *copy = *entry & ~(u64)(ENTRY_ACCESSED | ENTRY_DIRTY);
                page_take(*entry & ENTRY_ADDRESS);
            }
            at += level == 2 ? LARGE_SIZE - at % LARGE_SIZE : PAGE_SIZE;
        }
    }
    write_cr3(read_cr3());
}

static void clear_image(struct process *process)
{
    u64 length = (u64)(user_image_end - user_image_start);
    for (u64 at = USER_IMAGE; at < USER_IMAGE + length; at += PAGE_SIZE)
        *paging_entry(process->root, at, 1, false) = 0;
    paging_prune(process->root, USER_IMAGE);
}

/* Everything back to the allocator, the root included. It must not be in CR3 any more. */
void memory_free(struct process *process)
{
    for (int i = 0; i < REGION_COUNT; i++) {
        struct region *region = &process->regions[i];
        clear_range(process, region->start, region->end, FLUSH_INVLPG);
        *region = (struct region){0};
    }
    clear_image(process);
    for (int i = 0; i < 256; i++)
        ASSERT(((u64 *)direct(process->root))[i] == 0);
    page_release(process->root);
    process->root = 0;
}
