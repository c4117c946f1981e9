/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Command line and memory map, from Multiboot v1 or from the Linux zero page. All of it is copied:
 * the loader's own copies lie in RAM that the page allocator will hand out.
 */
#include "kernel.h"

#define MULTIBOOT_HAS_MEMORY 0x1
#define MULTIBOOT_HAS_COMMAND_LINE 0x4
#define MULTIBOOT_HAS_MAP 0x40
#define E820_RAM 1

struct multiboot_information {
    u32 flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr;
    u32 symbols[4];
    u32 mmap_length, mmap_addr;
};

struct multiboot_entry {
    u32 size; /* of what follows */
    u64 base, length;
    u32 kind;
} __attribute__((packed));

struct e820_entry {
    u64 base, length;
    u32 kind;
} __attribute__((packed));

struct boot_info boot_info;

/* Before the direct map exists: the boot tables map the first GiB at KERNEL_BASE. */
static const void *early(u64 physical)
{
    return (const void *)(KERNEL_BASE + physical);
}

/* Insert in ascending order. Page 0 stays out, so that 0 can mean "no page". */
static void add_range(u64 base, u64 length)
{
    u64 start = (base + PAGE_SIZE - 1) & ~(u64)(PAGE_SIZE - 1);
    u64 end = (base + length) & ~(u64)(PAGE_SIZE - 1);
    if (start == 0)
        start = PAGE_SIZE;
    if (end <= start || boot_info.range_count == 16)
        return;
    u32 at = boot_info.range_count++;
    for (; at > 0 && boot_info.ranges[at - 1].start > start; at--)
        boot_info.ranges[at] = boot_info.ranges[at - 1];
    boot_info.ranges[at] = (struct memory_range){start, end};
}

static void copy_command_line(u64 physical)
{
    const char *from = early(physical);
    size_t i = 0;
    for (; physical && from[i] && i < sizeof(boot_info.command_line) - 1; i++)
        boot_info.command_line[i] = from[i];
    boot_info.command_line[i] = 0;
}

static void read_multiboot(u64 information)
{
    const struct multiboot_information *info = early(information);
    copy_command_line(info->flags & MULTIBOOT_HAS_COMMAND_LINE ? info->cmdline : 0);
    if (info->flags & MULTIBOOT_HAS_MAP) {
        u64 at = info->mmap_addr, end = at + info->mmap_length;
        while (at < end) {
            const struct multiboot_entry *entry = early(at);
            if (entry->kind == E820_RAM)
                add_range(entry->base, entry->length);
            at += entry->size + sizeof(entry->size);
        }
    } else if (info->flags & MULTIBOOT_HAS_MEMORY) {
        add_range(0x100000, (u64)info->mem_upper << 10);
    }
}

static void read_linux(u64 information)
{
    const u8 *page = early(information);
    u32 command_line;
    memcpy(&command_line, page + 0x228, sizeof(command_line));
    copy_command_line(command_line);
    const struct e820_entry *entries = (const void *)(page + 0x2d0);
    for (u32 i = 0; i < page[0x1e8]; i++)
        if (entries[i].kind == E820_RAM)
            add_range(entries[i].base, entries[i].length);
}

void boot_info_read(u32 protocol, u64 information)
{
    if (protocol == BOOT_MULTIBOOT)
        read_multiboot(information);
    else
        read_linux(information);
    if (boot_info.range_count == 0)
        fail("the loader gave no memory map", information, 1, 0);
}
