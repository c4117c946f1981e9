# SPDX-License-Identifier: Apache-2.0
"""The walk of a live guest's page tables, by the same compiled walker as our own guests'.

The tables lie in another process. The walker sees a small cache of its pages as machine memory; a
table that is not in it ends the walk with NEED_PAGE, is fetched, and the walk begins again. All of
this module's use of the walker's context is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from memvirt.address import (
    PAGE_BYTES,
    PAGE_SHIFT,
    GuestPhysicalAddress,
    GuestVirtualAddress,
    PhysicalPageNumber,
    PpnArray,
    is_canonical,
    physical_page_number,
    signed64,
    unsigned64,
)
from memvirt.mmu.access import NEED_PAGE, OK, READ
from memvirt.mmu.entry import (
    ENTRY_ADDRESS_MASK,
    LEVEL_NAMES,
    MODE_2LEVEL,
    MODE_4LEVEL,
    MODE_5LEVEL,
    MODE_OFF,
    MODE_PAE,
    PRESENT,
)
from memvirt.mmu.guest_walk import guest_walk, paging_mode
from memvirt.mmu.mmu_state import MMU_DTYPE, WALK_LEVELS, MmuState
from memvirt.mmu.page_state import STATE_PRIVATE, STATE_UNMAPPED
from memvirt.state_record import new_record

from .page_states import LivePageState
from .vm import ControlRegisters, LiveVm

_CACHE_PAGES = 1024


@dataclass(frozen=True, slots=True)
class GuestEntry:
    """One entry of the guest's page tables that the walk read."""

    name: str  # "PML4E"
    level: int
    gpa: GuestPhysicalAddress  # where it lies
    value: int


@dataclass(frozen=True, slots=True)
class GuestTranslation:
    """What the guest's tables make of a gVA. ``gpa`` is None if they map nothing there."""

    gva: GuestVirtualAddress
    mode: int  # MODE_* of mmu.entry: the number of levels
    entries: tuple[GuestEntry, ...]
    gpa: GuestPhysicalAddress | None
    page_bytes: int  # of the guest's page; what is skipped with it, if nothing is mapped
    writable: bool
    user: bool
    executable: bool
    fault_error: int  # #PF error code of a supervisor's read, if there is no ``gpa``


class GuestWalker:
    """Walks with the control registers of one virtual processor, or with another ``cr3``.

    Fetched table pages are kept until ``forget``; a running guest may change its tables meanwhile.
    """

    def __init__(self, vm: LiveVm, registers: ControlRegisters, *, cr3: int | None = None) -> None:
        self._vm = vm
        self.registers = registers
        self.cr3 = registers.cr3 if cr3 is None else cr3
        self.mode = int(paging_mode(registers.cr0, registers.cr4, registers.efer))
        self.pages_fetched = 0
        pages = vm.layout.guest_pages
        self._cache = np.zeros(_CACHE_PAGES * PAGE_BYTES, np.uint8)
        self._pointers: dict[int, int] = {}  # PDPTEs of PAE paging as memory has them, by gPA
        self._cached: list[int] = []  # PPNs, in the order of their cache frames
        self._state = np.full(pages, STATE_UNMAPPED, np.uint8)
        self._flags = np.zeros(pages, np.uint8)
        self._frame = np.zeros(pages, np.uint32)
        self._record = new_record(MMU_DTYPE)
        mmu: MmuState = self._record[0]
        mmu.cr0, mmu.cr4 = registers.cr0, registers.cr4
        mmu.cr3, mmu.efer = signed64(self.cr3), registers.efer
        # Inspection reads as a supervisor whom SMAP does not stop.
        mmu.cpl, mmu.alignment_check = 0, 1
        mmu.physical_address_bits = registers.physical_address_bits
        mmu.has_1gib_pages = 1
        mmu.memory_at = self._cache.ctypes.data
        mmu.guest_pages = pages
        mmu.pmap_state_at = self._state.ctypes.data
        mmu.pmap_flags_at = self._flags.ctypes.data
        mmu.pmap_frame_at = self._frame.ctypes.data
        self._mmu = mmu

    @property
    def address_bits(self) -> int:
        """Bits of a guest virtual address that are translated."""
        return {MODE_4LEVEL: 48, MODE_5LEVEL: 57}.get(self.mode, 32)

    def forget(self) -> None:
        """Drop all table pages: the next walk reads the guest's tables as they are then."""
        self._state[self._cached] = STATE_UNMAPPED
        self._cached = []

    def check(self, gva: GuestVirtualAddress) -> None:
        """Raises ValueError for an address that cannot be one in the guest's mode."""
        if not 0 <= gva < 1 << 64:
            raise ValueError(f"{gva:#x} is not a 64-bit address")
        if self.mode >= MODE_4LEVEL:
            if not is_canonical(GuestVirtualAddress(gva), self.address_bits):
                raise ValueError(f"{gva:#x} is not canonical: the guest has {self.mode} levels")
        elif gva >> 32:
            raise ValueError(f"{gva:#x} does not fit the guest's 32-bit addresses")

    def translate(self, gva: GuestVirtualAddress) -> GuestTranslation:
        """Every entry on the way of ``gva``. Raises ValueError, and the errors of reading."""
        self.check(gva)
        mmu = self._mmu
        while True:
            for level in range(WALK_LEVELS):
                mmu.walk_entry_gpa[level] = GuestPhysicalAddress(-1)
            status = guest_walk(mmu, GuestVirtualAddress(signed64(gva)), READ, update=False)
            if status != NEED_PAGE:
                break
            self._fetch(physical_page_number(GuestPhysicalAddress(int(mmu.violation_gpa))))
        entries = tuple(
            self._entry(
                level,
                GuestPhysicalAddress(int(mmu.walk_entry_gpa[level])),
                int(mmu.walk_entry[level]),
            )
            for level in range(self.mode, 0, -1)
            if mmu.walk_entry_gpa[level] >= 0
        )
        found = status == OK
        skipped = PAGE_BYTES
        if not found and self.mode != MODE_OFF:
            index_bits = 10 if self.mode == MODE_2LEVEL else 9
            skipped = 1 << (PAGE_SHIFT + (int(mmu.fault_level) - 1) * index_bits)
        return GuestTranslation(
            gva=GuestVirtualAddress(gva),
            mode=self.mode,
            entries=entries,
            gpa=GuestPhysicalAddress(unsigned64(int(mmu.walk_gpa))) if found else None,
            page_bytes=int(mmu.walk_page_bytes) if found else skipped,
            writable=bool(mmu.walk_writable) and found,
            user=bool(mmu.walk_user) and found,
            executable=not mmu.walk_no_execute and found,
            fault_error=0 if found else int(mmu.fault_error),
        )

    def _entry(self, level: int, gpa: GuestPhysicalAddress, value: int) -> GuestEntry:
        if self.mode == MODE_PAE and level == 3:
            value = self._pointers.get(gpa, value)
        return GuestEntry(
            LEVEL_NAMES[level], level, GuestPhysicalAddress(int(gpa)), unsigned64(value)
        )

    def _accept_pointers(
        self, ppn: PhysicalPageNumber, page: np.ndarray[Any, np.dtype[np.uint8]]
    ) -> None:
        """Take the reserved bits out of the four PDPTEs of PAE paging, in the copy in the cache.

        The processor has checked them when CR3 was loaded and holds them in registers since (SDM
        vol. 3A section 4.4.1); what memory says there later changes nothing. QEMU (7.2, TCG) sets
        the accessed bit, which is reserved in them.
        """
        first = self.cr3 & 0xFFFF_FFE0
        if self.mode != MODE_PAE or first >> PAGE_SHIFT != ppn:
            return
        words = page.view(np.uint64)[(first & 0xFFF) >> 3 :][:4]
        for index, word in enumerate(words):
            self._pointers[first + 8 * index] = int(word)
        words &= np.uint64(ENTRY_ADDRESS_MASK | PRESENT)

    def _fetch(self, ppn: PhysicalPageNumber) -> None:
        """Bring the guest's page ``ppn`` into the cache, dropping everything once it is full."""
        if len(self._cached) == _CACHE_PAGES:
            self.forget()
        frame = len(self._cached)
        page = self._cache[frame * PAGE_BYTES : (frame + 1) * PAGE_BYTES]
        read_table(self._vm, ppn, page)
        self._accept_pointers(ppn, page)
        self._frame[ppn] = frame
        self._state[ppn] = STATE_PRIVATE
        self._cached.append(ppn)
        self.pages_fetched += 1


def read_table(
    vm: LiveVm, ppn: PhysicalPageNumber, out: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    """A page of the guest's tables. A page without a frame is zeroes and is not touched; where no
    RAM is, all bits are set, as on an open bus. A table that was swapped, or that a pager keeps, is
    brought back by reading it."""
    index = vm.layout.indices_of(PpnArray(np.array([ppn])))
    if index[0] < 0:
        out[:] = 0xFF
    elif vm.page_state(int(index[0])) is LivePageState.UNTOUCHED:
        if vm.has_pager(int(index[0])):
            vm.content.read_through_process(int(index[0]), out)
        else:
            out[:] = 0
    else:
        vm.content.read(index, out)
