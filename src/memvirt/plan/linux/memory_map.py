# SPDX-License-Identifier: Apache-2.0
"""The kernel's memory map: the use of every page frame, section by section.

Memory is divided into *sections* (SPARSEMEM, mm/sparse.c), and ``mem_section`` says where the
struct pages of each lie. A frame is told by what the kernel itself would go by
(include/linux/page-flags.h, mm_types.h):

- free: the type "buddy", on the first frame of a block of 2^order, or on the list of a processor;
- slab, page table, offline (ballooned): by flag or type;
- anonymous: bit 0 of ``mapping``; page cache: ``mapping`` is the address of an object;
- a further frame of an allocation of several: as its first;
- everything else: the kernel's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from memvirt.address import (
    PAGE_BYTES,
    GuestVirtualAddress,
    PhysicalPageNumber,
    PpnArray,
    physical_page_number,
)

from .kernel import Kernel
from .page_use import PageUse
from .struct_page import StructPageLayout, StructPages
from .vmcoreinfo import KernelUnreadable

Array = np.ndarray[Any, Any]
_MAP_FLAGS = PAGE_BYTES - 1  # low bits of section_mem_map; the map itself begins at a page
_HAS_MEM_MAP = 1 << 1
_LARGEST_ORDER = 20
_MAPPING_BITS, _ANONYMOUS = 3, 1
_KERNEL_HALF = 1 << 63
_MOST_LISTED = 1 << 20  # frames of one section that are looked for on processors' lists


class Section:
    """One section's frames: the PPN of the first, their uses, and which might be the top of a
    process's page tables (PPNs with the kernel address in ``mapping``)."""

    def __init__(self, first: PhysicalPageNumber, uses: Array, roots: list[tuple[int, int]]):
        self.first, self.uses, self.roots = first, uses, roots


class MemoryMap:
    """Raises KernelUnreadable, DumpError."""

    def __init__(self, kernel: Kernel) -> None:
        information = kernel.information
        self._addresses, self._memory = kernel.addresses, kernel.memory
        self.layout = StructPageLayout.of(information)
        bits = information.number("NUMBER(SECTION_SIZE_BITS)", 24, 34)
        self.section_pages = (1 << bits) // PAGE_BYTES
        self._roots_at = information.symbol("mem_section")
        self._roots = information.number("LENGTH(mem_section)", 1, 1 << 24)
        self._section_size = information.number("SIZE(mem_section)", 8, 256)
        self._map_at = information.number(
            "OFFSET(mem_section.section_mem_map)", 0, self._section_size - 8
        )
        found = self._addresses.translate(self._roots_at)
        if found is None:
            raise KernelUnreadable("its mem_section is not mapped")
        # mem_section was allocated before everything else: it lies in the direct map.
        self.direct_map = GuestVirtualAddress(self._roots_at - found[0])

    def sections(self, ppns: PpnArray) -> Iterator[Section]:
        """The sections that any of ``ppns`` (ascending) is in, but for those the kernel has not.

        Raises DumpError."""
        for number in np.unique(ppns // self.section_pages).tolist():
            frames = self._struct_pages(number)
            if frames is not None:
                yield self._classify(PhysicalPageNumber(number * self.section_pages), frames)

    def _struct_pages(self, number: int) -> StructPages | None:
        per_root = max(PAGE_BYTES // self._section_size, 1)
        root = self._pointer(self._roots_at + number // per_root * 8)
        if number // per_root >= self._roots or not root:
            return None
        encoded = self._pointer(root + number % per_root * self._section_size + self._map_at)
        if encoded is None or not encoded & _HAS_MEM_MAP:
            return None
        self._map = encoded & ~_MAP_FLAGS  # where the struct page of frame 0 would lie
        size, count = self.layout.size, self.section_pages
        first = GuestVirtualAddress(self._map + number * count * size & (1 << 64) - 1)
        ppns = self._addresses.ppns(first, count * size // PAGE_BYTES)
        content, held = self._memory.pages(ppns)
        present = np.repeat(held, PAGE_BYTES)[::size]
        return StructPages(self.layout, content.reshape(-1, size), present)

    def _pointer(self, gva: int) -> int | None:
        content = self._addresses.read(GuestVirtualAddress(gva), 8)
        return None if content is None else int.from_bytes(content, "little")

    def _classify(self, first: PhysicalPageNumber, frames: StructPages) -> Section:
        layout = self.layout
        further = (frames.compound_head & np.uint64(1)).astype(bool) & frames.present
        uses, roots = self._by_fields(first, frames, further)
        self._mark_free(first, frames, further, uses)
        if further.any():
            size = layout.size
            at = (frames.compound_head[further] - np.uint64(1 + self._map)) // np.uint64(size)
            inside = (at >= np.uint64(first)) & (at < np.uint64(first + uses.size))
            rows = np.flatnonzero(further)
            uses[rows[inside]] = uses[(at[inside] - np.uint64(first)).astype(np.int64)]
            for head in np.unique(at[~inside]).tolist():  # an allocation larger than a section
                uses[rows[at == head]] = self._use_of_head(head)
        uses[~frames.present] = PageUse.OUTSIDE
        return Section(first, uses, roots)

    def _by_fields(
        self, first: int, frames: StructPages, further: Array
    ) -> tuple[Array, list[tuple[int, int]]]:
        layout = self.layout
        uses = np.full(frames.present.size, PageUse.KERNEL, np.uint8)
        mapping = frames.mapping
        anonymous = (mapping & np.uint64(_MAPPING_BITS) & np.uint64(_ANONYMOUS)) != 0
        # Frames on no list of used pages may keep an old mapping: those in use have references.
        used = frames.reference_count > 0
        cached = used & (mapping >= np.uint64(_KERNEL_HALF))
        cached &= (mapping & np.uint64(_MAPPING_BITS)) == 0
        swap_backed = frames.has_flag(layout.bit_swap_backed)
        uses[cached] = PageUse.PAGE_CACHE
        uses[cached & swap_backed] = PageUse.SHARED_MEMORY
        uses[used & anonymous] = PageUse.ANONYMOUS
        for use, flag, kind in (
            (PageUse.SLAB, layout.bit_slab, layout.slab),
            (PageUse.PAGE_TABLE, None, layout.page_table),
            (PageUse.BALLOONED, None, layout.offline),
        ):
            uses[frames.has_flag(flag) | frames.is_type(kind)] = use
        on_lru = frames.has_flag(layout.bit_lru)
        doubtful = np.isin(uses, (PageUse.PAGE_CACHE, PageUse.SHARED_MEMORY)) & ~on_lru & ~further
        rows = np.flatnonzero(doubtful)
        return uses, list(zip((first + rows).tolist(), mapping[rows].tolist(), strict=True))

    def _mark_free(self, first: int, frames: StructPages, further: Array, uses: Array) -> None:
        heads = np.flatnonzero(frames.is_type(self.layout.buddy) & frames.present)
        order = frames.private[heads]
        heads, order = heads[order <= _LARGEST_ORDER], order[order <= _LARGEST_ORDER]
        for power in np.unique(order).tolist():
            rows = heads[order == power][:, None] + np.arange(1 << power)
            uses[rows[rows < uses.size]] = PageUse.FREE
        # No reference and in no block: on a processor's list, or further into an allocation that
        # was not marked as one of several. The first are linked.
        loose = (frames.reference_count == 0) & (uses == PageUse.KERNEL) & ~further
        rows = np.flatnonzero(loose & frames.present)[:_MOST_LISTED]
        next_one = frames.lru_next
        for row in rows.tolist():
            own = self._map + (first + row) * self.layout.size + self.layout.lru
            own &= (1 << 64) - 1
            after = int(next_one[row])
            if after >= _KERNEL_HALF and after != own and self._pointer(after + 8) == own:
                uses[row] = PageUse.FREE

    def _use_of_head(self, ppn: int) -> PageUse:
        """The use of one frame, by its struct page alone."""
        at = GuestVirtualAddress(self._map + ppn * self.layout.size & (1 << 64) - 1)
        content = self._addresses.read(at, self.layout.size)
        if content is None:
            return PageUse.KERNEL
        one = np.frombuffer(content, np.uint8)[None, :]
        frames = StructPages(self.layout, one, np.ones(1, bool))
        uses, _ = self._by_fields(ppn, frames, np.zeros(1, bool))
        return PageUse(int(uses[0]))

    def is_root(self, ppn: int, mapping: int) -> bool:
        """True if frame ``ppn`` is the top of a process's page tables: its ``mapping`` is then the
        process's ``mm_struct``, which has the table's address in the direct map (``pgd``)."""
        found = self._addresses.read(GuestVirtualAddress(mapping), PAGE_BYTES // 8)
        own = (self.direct_map + ppn * PAGE_BYTES & (1 << 64) - 1).to_bytes(8, "little")
        return found is not None and any(found[i : i + 8] == own for i in range(0, len(found), 8))

    def direct_ppn(self, gva: GuestVirtualAddress) -> PhysicalPageNumber | None:
        """The PPN behind a kernel address, None if nothing is mapped there. Raises DumpError."""
        found = self._addresses.translate(gva)
        return None if found is None else physical_page_number(found[0])
