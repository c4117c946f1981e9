# SPDX-License-Identifier: Apache-2.0
"""Backwards: from a frame of the host to the guest's page, and to the addresses that map it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from memvirt.address import (
    PAGE_SHIFT,
    GuestPhysicalAddress,
    GuestVirtualAddress,
    MachinePageNumber,
    PhysicalPageNumber,
    physical_page_number,
)
from memvirt.mmu.entry import (
    CR4_PSE,
    ENTRY_ADDRESS_MASK,
    LARGE,
    MODE_2LEVEL,
    MODE_4LEVEL,
    MODE_OFF,
    MODE_PAE,
    PRESENT,
)

from .kernel_pages import PAGEMAP_FRAME, PAGEMAP_PRESENT
from .vm import LiveVm
from .walk import GuestWalker, read_table

_MOST_TABLES = 1 << 20


def ppns_of_frame(vm: LiveVm, mpn: MachinePageNumber) -> list[PhysicalPageNumber]:
    """The VM's pages that are frame ``mpn`` now; several if KSM merged them within the VM."""
    entries = vm.pagemap.of_ram(vm.layout)
    hit = ((entries & PAGEMAP_PRESENT) != 0) & ((entries & PAGEMAP_FRAME) == np.uint64(mpn))
    ppns = vm.layout.ppns_of(np.flatnonzero(hit))
    return [PhysicalPageNumber(int(ppn)) for ppn in ppns if ppn >= 0]


@dataclass(frozen=True, slots=True)
class GuestMapping:
    """A leaf of the guest's tables that maps the page asked for."""

    gva: GuestVirtualAddress
    page_bytes: int


@dataclass(frozen=True, slots=True)
class _Geometry:
    """How a paging mode lays its tables out."""

    entry: Any  # NumPy type of an entry
    index_bits: int
    address_mask: int
    root_mask: int

    def span(self, level: int) -> int:
        """Bytes of address space one entry of ``level`` covers."""
        return 1 << (PAGE_SHIFT + (level - 1) * self.index_bits)


def _geometry(mode: int) -> _Geometry:
    if mode == MODE_2LEVEL:
        return _Geometry(np.uint32, 10, 0xFFFF_F000, 0xFFFF_F000)
    if mode == MODE_PAE:
        return _Geometry(np.uint64, 9, ENTRY_ADDRESS_MASK, 0xFFFF_FFE0)
    return _Geometry(np.uint64, 9, ENTRY_ADDRESS_MASK, ENTRY_ADDRESS_MASK)


def gvas_of_ppn(vm: LiveVm, walker: GuestWalker, ppn: PhysicalPageNumber) -> Iterator[GuestMapping]:
    """Every gVA that the walker's tables map to page ``ppn``.

    That is the kernel's, and those of the process whose CR3 it is. Reads each table of that address
    space once; none is walked twice on one path, so tables that point to themselves end.
    """
    if walker.mode == MODE_OFF:
        yield GuestMapping(GuestVirtualAddress(ppn << PAGE_SHIFT), 1 << PAGE_SHIFT)
        return
    geometry = _geometry(walker.mode)
    tables: dict[PhysicalPageNumber, Any] = {}

    def table(gpa: GuestPhysicalAddress) -> Any:
        page = physical_page_number(gpa)
        if page not in tables:
            if len(tables) >= _MOST_TABLES:
                return np.zeros(0, geometry.entry)
            content = np.zeros(1 << PAGE_SHIFT, np.uint8)
            if page < vm.layout.guest_pages:
                read_table(vm, page, content)
            tables[page] = content.view(geometry.entry)
        if walker.mode == MODE_PAE and gpa & 0xFFF:
            return tables[page][(gpa & 0xFFF) >> 3 :][:4]
        return tables[page]

    def visit(
        gpa: GuestPhysicalAddress, level: int, base: int, path: frozenset[int]
    ) -> Iterator[GuestMapping]:
        entries = table(gpa)
        if walker.mode == MODE_PAE and level == 3:
            entries = entries[:4]
        for index in np.flatnonzero(entries & geometry.entry(PRESENT)):
            entry = int(entries[index])
            gva = base + int(index) * geometry.span(level)
            if _is_leaf(walker, level, entry):
                first = _leaf_page(walker.mode, level, entry, geometry)
                offset = ppn - first
                if 0 <= offset < geometry.span(level) >> PAGE_SHIFT:
                    yield GuestMapping(
                        _canonical(
                            GuestVirtualAddress(gva + (offset << PAGE_SHIFT)), walker.address_bits
                        ),
                        geometry.span(level),
                    )
                continue
            below = GuestPhysicalAddress(entry & geometry.address_mask)
            if level > 1 and below not in path:
                yield from visit(below, level - 1, gva, path | {below})

    root = GuestPhysicalAddress(walker.cr3 & geometry.root_mask)
    yield from visit(root, walker.mode, 0, frozenset({root}))


def _is_leaf(walker: GuestWalker, level: int, entry: int) -> bool:
    if level == 1:
        return True
    if not entry & LARGE:
        return False
    if walker.mode == MODE_2LEVEL:
        return bool(walker.registers.cr4 & CR4_PSE)
    return level == 2 or (level == 3 and walker.mode >= MODE_4LEVEL)


def _leaf_page(mode: int, level: int, entry: int, geometry: _Geometry) -> PhysicalPageNumber:
    if mode == MODE_2LEVEL and level == 2:  # PSE-36: bits 20:13 are address bits 39:32
        address = (entry & 0xFFC0_0000) | ((entry >> 13 & 0xFF) << 32)
    else:
        address = entry & geometry.address_mask & ~(geometry.span(level) - 1)
    return physical_page_number(GuestPhysicalAddress(address))


def _canonical(gva: GuestVirtualAddress, bits: int) -> GuestVirtualAddress:
    if bits > 32 and gva >> (bits - 1) & 1:
        return GuestVirtualAddress(gva | (((1 << 64) - 1) ^ ((1 << bits) - 1)))
    return gva
