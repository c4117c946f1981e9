/* SPDX-License-Identifier: Apache-2.0 */
/* Page-table edits that an ordinary kernel would not offer; the churn and fault workloads do. */
#include "kernel.h"
#include "processor.h"

#define BLOCK_PAGES 512
#define ERROR_WRITE 0x2
#define RESERVED_SMALL (1ull << 51)
#define RESERVED_LARGE (1ull << 13)
#define RESERVED_TOP (1ull << 7)

static bool is_whole_region(struct process *process, u64 address, u64 length)
{
    struct region *region = memory_region(process, address);
    return region && length && region->start == address && region->end == address + length;
}

/* Map the small pages of `from` at `to` as well. Both see all writes from now on. */
s64 memory_alias(struct process *process, u64 from, u64 to, u64 length, u64 protection)
{
    if (!is_whole_region(process, from, length))
        return ERROR_INVALID;
    s64 result = memory_map(process, to, length, protection, 0);
    if (result < 0)
        return result;
    for (u64 offset = 0; offset < length; offset += PAGE_SIZE) {
        int level;
        /* Pages of its own for both: what is not there yet, or shared after a fork, comes now. */
        u64 *old = paging_leaf(process->root, from + offset, &level);
        if (!old || !(*old & ENTRY_WRITABLE)) {
            if (!memory_resolve(process, from + offset, ERROR_WRITE))
                return ERROR_INVALID;
            old = paging_leaf(process->root, from + offset, &level);
        }
        u64 *new = paging_entry(process->root, to + offset, 1, true);
        if (!new || level != 1)
            return ERROR_INVALID;
        page_take(*old & ENTRY_ADDRESS);
        *new = (*old & ENTRY_ADDRESS) | protection_bits((u8)protection);
    }
    return 0;
}

/* Swap the present pages of two whole regions of small pages with equal protection. */
s64 memory_exchange(struct process *process, u64 one, u64 other, u64 length, u64 flush)
{
    if (!is_whole_region(process, one, length) || !is_whole_region(process, other, length))
        return ERROR_INVALID;
    for (u64 offset = 0; offset < length; offset += PAGE_SIZE) {
        u64 *a = paging_entry(process->root, one + offset, 1, true);
        u64 *b = paging_entry(process->root, other + offset, 1, true);
        if (!a || !b)
            return ERROR_INVALID;
        u64 kept = *a;
        *a = *b;
        *b = kept;
    }
    paging_flush(one, length, flush);
    paging_flush(other, length, flush);
    return 0;
}

/* Swap two entries of level 2 or 3: 2 MiB or 1 GiB change places with one store each. */
s64 memory_exchange_tables(struct process *process, u64 one, u64 other, u64 level, u64 flush)
{
    if (level < 2 || level > 3)
        return ERROR_INVALID;
    u64 span = level == 2 ? LARGE_SIZE : LARGE_SIZE * 512ull;
    struct region *a = memory_region(process, one), *b = memory_region(process, other);
    if (!a || !b || one % span || other % span)
        return ERROR_INVALID;
    u64 *first = paging_entry(process->root, one, (int)level, true);
    u64 *second = paging_entry(process->root, other, (int)level, true);
    if (!first || !second)
        return ERROR_INVALID;
    u64 kept = *first;
    *first = *second;
    *second = kept;
    u64 length = a->end - one < span ? a->end - one : span;
    paging_flush(one, length, flush);
    length = b->end - other < span ? b->end - other : span;
    paging_flush(other, length, flush);
    return 0;
}

/* Edit the W bit of an upper-level entry; the region follows, so that faults are judged by it. */
s64 memory_protect_table(struct process *process, u64 address, u64 level, u64 writable, u64 flush)
{
    struct region *region = memory_region(process, address);
    u64 *entry = level >= 2 && level <= 4 && region
                     ? paging_entry(process->root, address, (int)level, false)
                     : NULL;
    if (!entry || !(*entry & ENTRY_PRESENT))
        return ERROR_INVALID;
    if (writable) {
        *entry |= ENTRY_WRITABLE;
        region->protection |= PROT_WRITE;
        return 0;
    }
    *entry &= ~(u64)ENTRY_WRITABLE;
    region->protection &= (u8)~PROT_WRITE;
    paging_flush(region->start, region->end - region->start, flush);
    return 0;
}

s64 memory_split(struct process *process, u64 address, u64 flush)
{
    int level;
    u64 *entry = paging_leaf(process->root, address, &level);
    if (!entry || level != 2 || page_references(*entry & ENTRY_ADDRESS) != 1)
        return ERROR_INVALID;
    u64 table = page_allocate();
    if (!table)
        return ERROR_NO_MEMORY;
    u64 physical = *entry & ENTRY_ADDRESS;
    u64 *entries = direct(table), rights = *entry & ~(ENTRY_ADDRESS | (u64)ENTRY_LARGE);
    large_break(physical);
    for (u64 i = 0; i < BLOCK_PAGES; i++)
        entries[i] = (physical + i * PAGE_SIZE) | rights;
    *entry = table | ENTRY_PRESENT | ENTRY_WRITABLE | ENTRY_USER;
    paging_flush(address & ~(u64)(LARGE_SIZE - 1), LARGE_SIZE, flush);
    return 0;
}

/* The reverse, by copying: all 512 pages must be present, of this process alone. */
s64 memory_collapse(struct process *process, u64 address, u64 flush)
{
    struct region *region = memory_region(process, address);
    u64 *upper = paging_entry(process->root, address, 2, false);
    if (!region || !upper || !(*upper & ENTRY_PRESENT) || *upper & ENTRY_LARGE)
        return ERROR_INVALID;
    u64 table = *upper & ENTRY_ADDRESS;
    u64 *entries = direct(table);
    for (u64 i = 0; i < BLOCK_PAGES; i++)
        if (!(entries[i] & ENTRY_PRESENT) || page_references(entries[i] & ENTRY_ADDRESS) != 1)
            return ERROR_INVALID;
    u64 large = large_allocate();
    if (!large)
        return ERROR_NO_MEMORY;
    for (u64 i = 0; i < BLOCK_PAGES; i++)
        memcpy(direct(large + i * PAGE_SIZE), direct(entries[i] & ENTRY_ADDRESS), PAGE_SIZE);
    *upper = large | ENTRY_LARGE | protection_bits(region->protection);
    paging_flush(address & ~(u64)(LARGE_SIZE - 1), LARGE_SIZE, flush);
    for (u64 i = 0; i < BLOCK_PAGES; i++)
        page_release(entries[i] & ENTRY_ADDRESS);
    page_release(table);
    return 0;
}

s64 memory_mapping(struct process *process, u64 address)
{
    int level;
    u64 *entry = paging_leaf(process->root, address, &level);
    if (!entry)
        return 0;
    return MAPPING_PRESENT | (*entry & ENTRY_WRITABLE ? MAPPING_WRITABLE : 0) |
           (level == 2 ? MAPPING_LARGE : 0) | (*entry & ENTRY_ACCESSED ? MAPPING_ACCESSED : 0) |
           (*entry & ENTRY_DIRTY ? MAPPING_DIRTY : 0);
}

/* Bits 51:MAXPHYADDR of an entry are reserved; with 52 address bits none of them is. */
static bool bit_51_is_reserved(void)
{
    return cpuid(0x80000000).eax < 0x80000008 || (cpuid(0x80000008).eax & 0xff) < 52;
}

/* Set or clear a reserved bit in an entry that maps `address`; 1 if this processor has none. */
s64 memory_poison(struct process *process, u64 address, u64 kind, bool on)
{
    int level = 4;
    u64 bit = RESERVED_TOP;
    u64 *entry;
    if (kind == POISON_TOP) {
        entry = paging_entry(process->root, address, 4, false);
    } else {
        entry = paging_leaf(process->root, address, &level);
        bit = kind == POISON_SMALL ? RESERVED_SMALL : RESERVED_LARGE;
        if (level != (kind == POISON_SMALL ? 1 : 2))
            return ERROR_INVALID;
        if (kind == POISON_SMALL && !bit_51_is_reserved())
            return 1;
    }
    if (!entry || !(*entry & ENTRY_PRESENT))
        return ERROR_INVALID;
    *entry = on ? *entry | bit : *entry & ~bit;
    invalidate_page(address);
    return 0;
}
