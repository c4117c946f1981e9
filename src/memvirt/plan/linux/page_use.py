# SPDX-License-Identifier: Apache-2.0
"""What a guest's kernel uses a page for."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["USE_NAMES", "PageUse"]


class PageUse(IntEnum):
    """The use of a page, as the guest's kernel has it; each page has exactly one."""

    UNKNOWN = 0  # no Linux kernel was found, or its memory map could not be read
    FREE = 1  # in the page allocator: content that nobody needs
    PAGE_CACHE = 2  # of files; what is clean can be read again
    SHARED_MEMORY = 3  # tmpfs, shared memory: in the page cache, but with no file behind it
    ANONYMOUS = 4  # of processes, KSM's included
    PAGE_TABLE = 5  # of processes and of the kernel, of every level
    SLAB = 6  # the kernel's small objects: directory entries, inodes and so on
    BALLOONED = 7  # given up to the hypervisor, or offline
    KERNEL = 8  # everything else the kernel has: text, stacks, the memory map itself, drivers
    OUTSIDE = 9  # no memory of the kernel's: firmware, video memory, what it was told to leave


USE_NAMES = {use: use.name.lower().replace("_", " ") for use in PageUse}
