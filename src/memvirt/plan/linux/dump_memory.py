# SPDX-License-Identifier: Apache-2.0
"""Memory of a dump by guest-physical and by kernel virtual address.

Nothing a dump says is believed: an address that leads nowhere gives None, and no number read from
it decides how long a loop runs or how much is read. The compiled walker (mmu/guest_walk.py) needs
guest memory as one array, which a hostile dump with PPNs up to 2^40 would make as large: tables are
walked here page by page instead.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from memvirt.address import (
    PAGE_BYTES,
    PAGE_SHIFT,
    GuestPhysicalAddress,
    GuestVirtualAddress,
    PhysicalPageNumber,
    PpnArray,
    page_offset,
    physical_page_number,
)
from memvirt.mmu.entry import ENTRY_ADDRESS_MASK, LARGE, PRESENT
from memvirt.plan.dumps.dump import Dump

_CACHE_PAGES = 4096
_ENTRIES = 512
_LARGEST_LEAF = 3  # 1 GiB
Words = np.ndarray[Any, np.dtype[np.uint64]]


class PhysicalMemory:
    """Pages of a dump by PPN; those asked for one at a time are kept a while."""

    def __init__(self, dump: Dump) -> None:
        self._dump = dump
        self._kept: OrderedDict[int, bytes | None] = OrderedDict()

    def page(self, ppn: PhysicalPageNumber) -> bytes | None:
        """Content of a page, None if the dump does not hold it. Raises DumpError."""
        if ppn in self._kept:
            self._kept.move_to_end(ppn)
            return self._kept[ppn]
        position = self._dump.position(ppn)
        content = None if position < 0 else self._dump.read(position, 1).tobytes()
        self._kept[ppn] = content
        if len(self._kept) > _CACHE_PAGES:
            self._kept.popitem(last=False)
        return content

    def pages(self, ppns: PpnArray) -> tuple[Any, Any]:
        """Content of many pages, shape (n, 4096), and which of them the dump holds (others are
        zeroes). Neighbours are read at once. Raises DumpError."""
        content = np.zeros((ppns.size, PAGE_BYTES), np.uint8)
        at = np.array([self._dump.position(ppn) for ppn in ppns.tolist()], np.int64)
        held = np.flatnonzero(at >= 0)
        starts = np.flatnonzero(np.diff(at[held], prepend=-2) != 1)
        starts = np.union1d(starts, np.flatnonzero(np.diff(held, prepend=-2) != 1))
        for start, end in zip(starts, [*starts[1:], held.size], strict=True):
            rows = slice(held[start], held[end - 1] + 1)
            content[rows] = self._dump.read(int(at[held[start]]), int(end - start))
        return content, at >= 0


class KernelAddressSpace:
    """The kernel's half of a guest's virtual addresses, by the page tables at ``root``.

    Entries as in SDM vol. 3A section 4.5; ``levels`` is 4 or 5. The guest may have been stopped
    anywhere, so an entry may lead outside its memory; that is an address that is not there.
    """

    def __init__(
        self, memory: PhysicalMemory, root: PhysicalPageNumber, levels: int, encryption_mask: int
    ) -> None:
        self.memory, self.root, self.levels = memory, root, levels
        self._address_mask = ENTRY_ADDRESS_MASK & ~encryption_mask

    def translate(self, gva: GuestVirtualAddress) -> tuple[GuestPhysicalAddress, int] | None:
        """The guest-physical address of ``gva`` and the bytes from there to the end of the page
        (of any size) that maps it; None if nothing does. Raises DumpError."""
        table = self.root
        for level in range(self.levels, 0, -1):
            content = self.memory.page(table)
            if content is None:
                return None
            shift = PAGE_SHIFT + 9 * (level - 1)
            index = gva >> shift & _ENTRIES - 1
            entry = int.from_bytes(content[8 * index : 8 * index + 8], "little")
            if not entry & PRESENT:
                return None
            if level == 1 or (level <= _LARGEST_LEAF and entry & LARGE):
                size = 1 << shift
                first = entry & self._address_mask & ~(size - 1)
                inside = gva & size - 1
                return GuestPhysicalAddress(first + inside), size - inside
            table = PhysicalPageNumber((entry & self._address_mask) >> PAGE_SHIFT)
        return None

    def read(self, gva: GuestVirtualAddress, size: int) -> bytes | None:
        """``size`` bytes from ``gva``; None unless all are there. Raises DumpError."""
        out = b""
        while size > 0:
            found = self.translate(gva)
            content = None if found is None else self.memory.page(physical_page_number(found[0]))
            if found is None or content is None:
                return None
            offset = page_offset(gva)
            part = content[offset : offset + size]
            out += part
            gva, size = GuestVirtualAddress(gva + len(part)), size - len(part)
        return out

    def ppns(self, gva: GuestVirtualAddress, pages: int) -> PpnArray:
        """The PPNs behind ``pages`` pages from ``gva`` (of a page's beginning); -1 where nothing
        is mapped. Raises DumpError."""
        out = np.full(pages, -1, np.int64)
        done = 0
        while done < pages:
            found = self.translate(GuestVirtualAddress(gva + done * PAGE_BYTES))
            count = 1
            if found is not None:
                count = min(found[1] // PAGE_BYTES, pages - done)
                first = physical_page_number(found[0])
                out[done : done + count] = np.arange(first, first + count)
            done += count
        return PpnArray(out)

    def tables(self, root: PhysicalPageNumber, *, first: int, end: int, lowest_level: int) -> Words:
        """PPNs of the page tables under ``root``'s entries ``first`` to ``end`` - 1, of every level
        from the root's down to ``lowest_level``, ``root`` included. Raises DumpError."""
        found = [np.array([root], np.uint64)]
        tables = found[0]
        for level in range(self.levels, lowest_level, -1):
            content, _ = self.memory.pages(PpnArray(tables.astype(np.int64)))
            entries = content.view(np.uint64).reshape(-1, _ENTRIES)
            if level == self.levels:
                entries = entries[:, first:end]
            entries = entries[(entries & np.uint64(PRESENT)) != 0]
            if level <= _LARGEST_LEAF:
                entries = entries[(entries & np.uint64(LARGE)) == 0]
            below = (entries & np.uint64(self._address_mask)) >> np.uint64(PAGE_SHIFT)
            # Each table is looked at once, whatever the entries say.
            tables = np.setdiff1d(below, np.concatenate(found))
            found.append(tables)
        return np.concatenate(found)
