/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Four-level page tables, and the kernel's own part of them.
 *
 *   DIRECT_BASE   all RAM, writable, never executable; 2 MiB pages, 4 KiB where a 2 MiB block is
 *                 not all RAM. The kernel's text and constants are read-only here too.
 *   KERNEL_BASE   the image: text RX, constants R, data RW.
 *   WINDOW_BASE   empty; kernel tests map pages here.
 *
 * All kernel mappings outside the window are global. Every root shares the kernel's level-4
 * entries, so a kernel mapping made below them is seen by all processes.
 */
#include "kernel.h"
#include "processor.h"

#define TABLE_ENTRIES 512
#define IMAGE_START 0x100000

extern const char text_start[], text_end[], rodata_end[], bss_end[], boot_start[], boot_end[];

u64 kernel_root;
bool smep_enabled, smap_enabled;
static u64 early_cursor; /* tables before the allocator runs */

static u64 new_table(void)
{
    if (early_cursor) {
        u64 table = early_cursor;
        early_cursor += PAGE_SIZE;
        memset(direct(table), 0, PAGE_SIZE);
        return table;
    }
    return page_allocate_zeroed();
}

static u64 index_at(u64 address, int level)
{
    return address >> (12 + 9 * (level - 1)) & (TABLE_ENTRIES - 1);
}

/*
 * The entry for `address` in a table of `level` (1 = page table, 4 = root), making the tables
 * above it if `create`. NULL if a table is missing (or could not be had), or if a large page is
 * in the way.
 */
u64 *paging_entry(u64 root, u64 address, int level, bool create)
{
    u64 table = root;
    u64 rights = ENTRY_PRESENT | ENTRY_WRITABLE | (address < USER_TOP ? ENTRY_USER : 0);
    for (int at = 4; at > level; at--) {
        u64 *entry = (u64 *)direct(table) + index_at(address, at);
        if (!(*entry & ENTRY_PRESENT)) {
            u64 fresh = create ? new_table() : 0;
            if (!fresh)
                return NULL;
            *entry = fresh | rights;
        } else if (*entry & ENTRY_LARGE) {
            return NULL;
        }
        table = *entry & ENTRY_ADDRESS;
    }
    return (u64 *)direct(table) + index_at(address, level);
}

/* The present entry that maps `address`, level 1 or 2; NULL if none does. */
u64 *paging_leaf(u64 root, u64 address, int *level)
{
    u64 *entry = paging_entry(root, address, 2, false);
    *level = 2;
    if (entry && (*entry & ENTRY_PRESENT) && !(*entry & ENTRY_LARGE)) {
        *level = 1;
        entry = (u64 *)direct(*entry & ENTRY_ADDRESS) + index_at(address, 1);
    }
    return entry && (*entry & ENTRY_PRESENT) ? entry : NULL;
}

static bool table_is_empty(u64 table)
{
    const u64 *entries = direct(table);
    for (int i = 0; i < TABLE_ENTRIES; i++)
        if (entries[i])
            return false;
    return true;
}

/*
 * Free the tables that map `address` and have become empty. The processor may have cached the
 * entries that pointed to them, so one invlpg goes before each table is given back.
 */
void paging_prune(u64 root, u64 address)
{
    for (int level = 2; level <= 4; level++) {
        u64 *entry = paging_entry(root, address, level, false);
        if (!entry || !(*entry & ENTRY_PRESENT) || (*entry & ENTRY_LARGE && level == 2))
            continue;
        u64 table = *entry & ENTRY_ADDRESS;
        if (!table_is_empty(table))
            return;
        *entry = 0;
        invalidate_page(address);
        page_release(table);
    }
}

u64 paging_new_root(void)
{
    u64 root = page_allocate();
    if (!root)
        return 0;
    u64 *entries = direct(root);
    memset(entries, 0, PAGE_SIZE / 2);
    memcpy(entries + 256, (u64 *)direct(kernel_root) + 256, PAGE_SIZE / 2);
    return root;
}

/* Make lowered rights or changed frames of a range known to the processor. */
void paging_flush(u64 address, u64 length, u64 flush)
{
    if (flush == FLUSH_CR3) {
        write_cr3(read_cr3());
        return;
    }
    for (u64 at = address; at < address + length; at += PAGE_SIZE)
        invalidate_page(at);
}

static u64 physical_of(const char *symbol)
{
    return (u64)symbol - KERNEL_BASE;
}

/* What the direct map allows on a page: the image's text and constants stay read-only. */
static u64 direct_rights(u64 physical)
{
    bool constant = physical >= physical_of(text_start) && physical < physical_of(rodata_end);
    return ENTRY_PRESENT | ENTRY_NX | ENTRY_GLOBAL | (constant ? 0 : ENTRY_WRITABLE);
}

static void map_direct(struct memory_range range)
{
    for (u64 at = range.start; at < range.end;) {
        if (at % LARGE_SIZE == 0 && at + LARGE_SIZE <= range.end) {
            u64 *entry = paging_entry(kernel_root, DIRECT_BASE + at, 2, true);
            *entry = at | ENTRY_LARGE | direct_rights(at);
            at += LARGE_SIZE;
        } else {
            *paging_entry(kernel_root, DIRECT_BASE + at, 1, true) = at | direct_rights(at);
            at += PAGE_SIZE;
        }
    }
}

static void map_image(void)
{
    for (u64 at = (u64)text_start; at < (u64)bss_end; at += PAGE_SIZE) {
        u64 rights = ENTRY_PRESENT | ENTRY_GLOBAL;
        if (at >= (u64)text_end)
            rights |= ENTRY_NX;
        if (at >= (u64)rodata_end)
            rights |= ENTRY_WRITABLE;
        *paging_entry(kernel_root, at, 1, true) = (at - KERNEL_BASE) | rights;
    }
}

static void enable_protections(void)
{
    u64 cr4 = CR4_PAE | CR4_PGE;
    if (cpuid(0).eax >= 7) {
        u32 features = cpuid(7).ebx;
        smep_enabled = features >> 7 & 1;
        smap_enabled = features >> 20 & 1;
    }
    write_cr4(cr4 | (smep_enabled ? CR4_SMEP : 0) | (smap_enabled ? CR4_SMAP : 0));
}

void paging_initialize(void)
{
    early_cursor = physical_of(bss_end);
    kernel_root = new_table();
    for (u32 i = 0; i < boot_info.range_count; i++)
        map_direct(boot_info.ranges[i]);
    map_image();
    paging_entry(kernel_root, WINDOW_BASE, 2, true); /* so that every root shares it */
    write_cr3(kernel_root);
    direct_map_ready();
    enable_protections();
    u64 metadata = early_cursor;
    early_cursor = 0;
    physical_initialize(metadata);
    physical_adopt((u64)boot_start, (u64)boot_end); /* the boot code and tables are done with */
}
