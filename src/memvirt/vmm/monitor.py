# SPDX-License-Identifier: Apache-2.0
"""The virtual machine monitor (VMM) of one VM: its pmap and its shadow or nested page tables.

Everything the host does to a VM's memory behind the guest's back happens through the methods of
``VirtualMachineMonitor``. They are called only while the VM's processor is stopped; the processor
drops what it cached (``take_stale``) before it runs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES, PAGE_SHIFT
from memvirt.machine.memory import NOBODY, FrameKind, Frames, MachineMemory
from memvirt.mmu import control
from memvirt.mmu.control import new_control_block

from .backing import BackingStore, HeldPages
from .invalidate import invalidate_pages
from .pmap import PageState, Pmap
from .shadow_table import SHADOW_PAGE_DTYPE, zap_all

# Frames moved from the host to a VM's reserve at a time: one refill per so many page faults.
RESERVE_FRAMES = 256
PHYSICAL_ADDRESS_BITS = 40


class PagingMode(IntEnum):
    """How the processor translates guest virtual addresses."""

    SHADOW = control.PAGING_SHADOW
    NESTED = control.PAGING_NESTED
    FLAT = control.PAGING_FLAT  # no virtualization: the engine's own MMU, for comparison


@dataclass(frozen=True, slots=True)
class Stale:
    """What the processor must drop before it runs: cached translations, code of frames."""

    flush: bool
    code: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """Guest pages by state, frames by use, and what the VMM did. Counts since power-on."""

    pages: int
    unmapped: int
    private: int
    shared: int
    compressed: int
    swapped: int
    frames_guest: int
    frames_shadow: int
    frames_nested: int
    frames_reserve: int
    demand_allocated: int
    moved: int
    unmapped_by_host: int
    brought_back: int
    shares: int
    share_breaks: int
    hidden_faults: int
    true_faults: int
    trace_faults: int
    resynchronizations: int
    shadow_zaps: int
    root_switches: int
    entries_dropped: int
    walks: int
    walk_references: int
    guest_walks: int
    guest_walk_references: int
    tlb_fills: int


class VirtualMachineMonitor:
    """The VMM of VM ``vm_id`` with ``pages`` guest-physical pages on ``machine``.

    Raises MachineMemoryExhausted if not even its tables' first frames can be had.
    """

    def __init__(
        self,
        machine: MachineMemory,
        pages: int,
        paging: PagingMode,
        *,
        vm_id: int = 0,
        backing: BackingStore | None = None,
    ) -> None:
        self.machine = machine
        self.vm_id = vm_id
        self.paging = paging
        self.pmap = Pmap(pages)
        self.backing: BackingStore = backing if backing is not None else HeldPages()
        self.control_block = new_control_block()
        self.control: Any = self.control_block.view(np.recarray)[0]
        self._reserve = np.zeros(2 * RESERVE_FRAMES, np.uint32)
        self._stale_flush = False
        self._stale_code: list[int] = []
        self._counts = dict.fromkeys(
            ("moved", "unmapped_by_host", "brought_back", "shares", "share_breaks"), 0
        )
        self._off = False
        self._set_up_control()
        if paging is PagingMode.FLAT:
            self._map_flat()
        else:
            self._set_up_shadow()
            self.refill_reserve()
        if paging is PagingMode.NESTED:
            self._nested_tlb = np.zeros(control.NESTED_TLB_ENTRIES, control.NESTED_TLB_DTYPE)
            self.control.nested_tlb_at = self._nested_tlb.ctypes.data
            root = self.machine.allocate(kind=FrameKind.NESTED, owner=vm_id, tag=4)
            self.control.nested_root = int(root[0])
            self.control.nested_tables = 1

    def _set_up_control(self) -> None:
        block, machine, pmap = self.control, self.machine, self.pmap
        block.paging = int(self.paging)
        block.vm_id = self.vm_id
        block.physical_address_bits = PHYSICAL_ADDRESS_BITS
        block.has_1gib_pages = 1
        block.memory_at = machine.host_address
        block.machine_bytes = machine.bytes
        block.frame_kind_at = machine.kind.ctypes.data
        block.frame_owner_at = machine.owner.ctypes.data
        block.frame_tag_at = machine.tag.ctypes.data
        block.frame_references_at = machine.references.ctypes.data
        block.guest_pages = pmap.pages
        block.pmap_state_at = pmap.state.ctypes.data
        block.pmap_frame_at = pmap.frame.ctypes.data
        block.pmap_flags_at = pmap.flags.ctypes.data
        block.rmap_head_at = pmap.rmap_head.ctypes.data
        block.reserve_at = self._reserve.ctypes.data
        block.lapic_gpa = 0xFEE0_0000
        block.lapic_window = -(-machine.bytes // (1 << 21)) * (1 << 21)
        block.hole_window = block.lapic_window + PAGE_BYTES
        block.event_vector = -1

    def _set_up_shadow(self) -> None:
        """The pool of shadow pages: enough for the guest's own tables with room to spare."""
        capacity = 256 + self.pmap.pages // 64 if self.paging is PagingMode.SHADOW else 1
        buckets = 1 << max(capacity - 1, 1).bit_length()
        self.shadow_pages = np.zeros(capacity, SHADOW_PAGE_DTYPE)
        self.shadow_pages["mpn"] = -1
        self._shadow_copy = np.zeros(capacity * 512, np.int64)
        self._rmap_next = np.zeros(capacity * 512, np.int32)
        self._rmap_previous = np.zeros(capacity * 512, np.int32)
        self._shadow_parent = np.full(capacity, -1, np.int32)
        self._shadow_hash = np.full(buckets, -1, np.int32)
        self._unsynchronized = np.zeros(capacity, np.int32)
        block = self.control
        block.shadow_capacity = capacity
        block.shadow_pages_at = self.shadow_pages.ctypes.data
        block.shadow_copy_at = self._shadow_copy.ctypes.data
        block.rmap_next_at = self._rmap_next.ctypes.data
        block.rmap_previous_at = self._rmap_previous.ctypes.data
        block.shadow_parent_at = self._shadow_parent.ctypes.data
        block.shadow_hash_at = self._shadow_hash.ctypes.data
        block.shadow_hash_mask = buckets - 1
        block.unsynchronized_at = self._unsynchronized.ctypes.data
        zap_all(self.control_block[0])
        block.shadow_zaps = 0
        block.shadow_stale = 0

    def _map_flat(self) -> None:
        """Flat memory: one contiguous run of frames, all of it at once."""
        first = self.machine.allocate_contiguous(
            self.pmap.pages, kind=FrameKind.GUEST, owner=self.vm_id
        )
        mpns = np.arange(first, first + self.pmap.pages, dtype=np.uint32)
        self.machine.tag[mpns] = np.arange(self.pmap.pages)
        self.pmap.frame[:] = mpns
        self.pmap.state[:] = PageState.PRIVATE

    # Frames ------------------------------------------------------------------------------------

    def refill_reserve(self, minimum: int = 16) -> None:
        """Bring the reserve to RESERVE_FRAMES; to less, but ``minimum``, when memory is short.

        No VM takes more than an eighth of what is free, so that reserves do not starve others.
        Raises MachineMemoryExhausted, with the reserve unchanged, if ``minimum`` cannot be had.
        """
        have = int(self.control.reserve_count)
        fair = max(minimum - have, self.machine.free_frames // 8)
        wanted = min(RESERVE_FRAMES - have, fair)
        if wanted <= 0:
            return
        taken = self.machine.allocate(wanted, kind=FrameKind.RESERVE, owner=self.vm_id)
        self._reserve[have : have + wanted] = taken[::-1]
        self.control.reserve_count = have + wanted

    def take_frame(self, ppn: int) -> int:
        """A zeroed frame for ``ppn``, straight from the host."""
        return int(self.machine.allocate(kind=FrameKind.GUEST, owner=self.vm_id, tag=ppn)[0])

    # What the processor must drop --------------------------------------------------------------

    def take_stale(self) -> Stale:
        """What to drop before the processor runs again; asking forgets it."""
        flush = self._stale_flush or bool(self.control.shadow_stale)
        stale = Stale(flush, tuple(self._stale_code))
        self._stale_flush, self._stale_code = False, []
        return stale

    def _invalidate(self, ppns: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Take back all translations of resident pages whose frames are about to change."""
        if ppns.size == 0:
            return
        if self.paging is PagingMode.FLAT:
            raise ValueError("flat memory has no pages to manage: use shadow or nested paging")
        executed = np.zeros(ppns.size, np.uint8)
        invalidate_pages(self.control_block[0], ppns, executed)
        self._stale_flush = True
        self._stale_code.extend(int(mpn) for mpn in self.pmap.frame[ppns[executed != 0]])

    def _select(
        self, ppns: Sequence[int] | np.ndarray[Any, Any], states: Sequence[PageState]
    ) -> np.ndarray[Any, np.dtype[np.int64]]:
        wanted = np.unique(np.asarray(ppns, np.int64))
        if wanted.size:
            self.pmap.check(int(wanted[0]))
            self.pmap.check(int(wanted[-1]))
        return wanted[np.isin(self.pmap.state[wanted], states)]

    # Remapping without the guest's knowledge ---------------------------------------------------

    def move(self, ppns: Sequence[int] | np.ndarray[Any, Any]) -> int:
        """Give each private page among ``ppns`` another frame with the same content.

        Returns how many were moved. Raises MachineMemoryExhausted before anything has changed.
        """
        pages = self._select(ppns, (PageState.PRIVATE,))
        if pages.size == 0:
            return 0
        old = self.pmap.frame[pages].copy()
        new = self.machine.allocate(pages.size, kind=FrameKind.GUEST, owner=self.vm_id)
        self._invalidate(pages)
        content = self.machine.content.reshape(-1, PAGE_BYTES)
        content[new] = content[old]
        self.machine.tag[new] = pages
        self.pmap.frame[pages] = new
        self.machine.release(old)
        self._counts["moved"] += int(pages.size)
        return int(pages.size)

    def unmap(self, ppns: Sequence[int] | np.ndarray[Any, Any]) -> int:
        """Take the frames of the resident pages among ``ppns``; their content is kept aside.

        The next access of the guest brings a page back. Pages of zeroes need no keeping.
        Returns how many were unmapped.
        """
        pages = self._select(ppns, (PageState.PRIVATE, PageState.SHARED))
        self._invalidate(pages)
        for ppn in pages.tolist():
            mpn = int(self.pmap.frame[ppn])
            content = self.machine.page(mpn)
            if content.any():
                self.pmap.frame[ppn] = self.backing.put(content.tobytes())
                self.pmap.state[ppn] = PageState.SWAPPED
            else:
                self.pmap.frame[ppn] = 0
                self.pmap.state[ppn] = PageState.UNMAPPED
            self.machine.release(mpn)
        self._counts["unmapped_by_host"] += int(pages.size)
        return int(pages.size)

    def make_shared(self, ppn: int) -> int:
        """Make the frame of private page ``ppn`` one that others may share; returns its MPN.

        From now on nobody, this VM included, writes to it in place.
        """
        if self.pmap.state_of(ppn) is not PageState.PRIVATE:
            raise ValueError(f"PPN {ppn:#x} is {self.pmap.state_of(ppn).name.lower()}, not private")
        self._invalidate(np.array([ppn], np.int64))
        mpn = int(self.pmap.frame[ppn])
        self.machine.kind[mpn] = FrameKind.SHARED
        self.machine.owner[mpn] = NOBODY
        self.machine.tag[mpn] = -1
        self.pmap.state[ppn] = PageState.SHARED
        self._counts["shares"] += 1
        return mpn

    def share(self, ppn: int, mpn: int) -> bool:
        """Let ``ppn`` use shared frame ``mpn``, copy-on-write, if the contents are equal.

        Returns False, and changes nothing, if they differ or the page is not private.
        Raises ValueError if ``mpn`` is not a shared frame.
        """
        self.pmap.check(ppn)
        if self.machine.kind[mpn] != FrameKind.SHARED:
            kind = FrameKind(int(self.machine.kind[mpn])).name
            raise ValueError(f"MPN {mpn:#x} is {kind}, not SHARED: see make_shared")
        if self.pmap.state[ppn] != PageState.PRIVATE:
            return False
        old = int(self.pmap.frame[ppn])
        if not np.array_equal(self.machine.page(old), self.machine.page(mpn)):
            return False
        self._invalidate(np.array([ppn], np.int64))
        self.machine.add_reference(mpn)
        self.pmap.frame[ppn] = mpn
        self.pmap.state[ppn] = PageState.SHARED
        self.machine.release(old)
        self._counts["shares"] += 1
        return True

    def bring_back(self, ppn: int, *, write: bool) -> None:
        """Make ``ppn`` accessible: what the exit NEED_PAGE asks for.

        Raises MachineMemoryExhausted, with nothing changed, if no frame is free.
        """
        state = self.pmap.state_of(ppn)
        if state is PageState.SHARED and write:
            self._break_share(ppn)
        elif state is PageState.SWAPPED:
            slot = int(self.pmap.frame[ppn])
            mpn = self.take_frame(ppn)
            try:
                content = self.backing.take(slot)
            except BaseException:
                self.machine.release(mpn)
                raise
            self.machine.page(mpn)[:] = np.frombuffer(content, np.uint8)
            self.pmap.frame[ppn] = mpn
            self.pmap.state[ppn] = PageState.PRIVATE
            self._counts["brought_back"] += 1
        elif state is PageState.UNMAPPED:
            self.pmap.frame[ppn] = self.take_frame(ppn)
            self.pmap.state[ppn] = PageState.PRIVATE
            self.control.frames_demand_allocated += 1

    def _break_share(self, ppn: int) -> None:
        shared = int(self.pmap.frame[ppn])
        new = self.take_frame(ppn)
        self._invalidate(np.array([ppn], np.int64))
        self.machine.page(new)[:] = self.machine.page(shared)
        self.pmap.frame[ppn] = new
        self.pmap.state[ppn] = PageState.PRIVATE
        self.machine.release(shared)
        self._counts["share_breaks"] += 1

    # The guest's memory as the host sees it ----------------------------------------------------

    def read_page(self, ppn: int) -> bytes:
        """The 4096 bytes of ``ppn`` as the guest would read them; changes nothing."""
        state = self.pmap.state_of(ppn)
        if state is PageState.UNMAPPED:
            return bytes(PAGE_BYTES)
        if state is PageState.SWAPPED:
            return self.backing.read(int(self.pmap.frame[ppn]))
        return self.machine.page(int(self.pmap.frame[ppn])).tobytes()

    def read_physical(self, gpa: int, count: int) -> bytes:
        """``count`` bytes at guest-physical address ``gpa``. Raises IndexError beyond memory."""
        pieces = []
        while count > 0:
            ppn, offset = gpa >> PAGE_SHIFT, gpa & (PAGE_BYTES - 1)
            size = min(count, PAGE_BYTES - offset)
            pieces.append(self.read_page(ppn)[offset : offset + size])
            gpa, count = gpa + size, count - size
        return b"".join(pieces)

    def write_physical(self, gpa: int, data: bytes) -> None:
        """Store ``data`` at guest-physical address ``gpa``, as a device or a loader does.

        Raises IndexError beyond the VM's memory, MachineMemoryExhausted without frames.
        """
        view = memoryview(data)
        while view:
            ppn, offset = gpa >> PAGE_SHIFT, gpa & (PAGE_BYTES - 1)
            size = min(len(view), PAGE_BYTES - offset)
            self.bring_back(ppn, write=True)
            mpn = int(self.pmap.frame[ppn])
            if self.paging is PagingMode.FLAT:
                self._stale_code.append(mpn)
            elif self.pmap.flags[ppn] & (control.FLAG_EXECUTED | control.FLAG_SHADOWED):
                self._invalidate(np.array([ppn], np.int64))
                zap_all(self.control_block[0])
            self.machine.page(mpn)[offset : offset + size] = np.frombuffer(view[:size], np.uint8)
            view, gpa = view[size:], gpa + size

    # ------------------------------------------------------------------------------------------

    def statistics(self) -> MemoryStatistics:
        block, pmap = self.control, self.pmap
        mine = self.machine.kind[self.machine.owned_by(self.vm_id)]
        counts = np.bincount(mine, minlength=len(FrameKind))
        names = (
            "hidden_faults", "true_faults", "trace_faults", "resynchronizations", "shadow_zaps",
            "root_switches", "entries_dropped", "walks", "walk_references", "guest_walks",
            "guest_walk_references", "tlb_fills",
        )  # fmt: skip
        return MemoryStatistics(
            pages=pmap.pages,
            **{state.name.lower(): pmap.count(state) for state in PageState},
            frames_guest=int(counts[FrameKind.GUEST]),
            frames_shadow=int(counts[FrameKind.SHADOW]),
            frames_nested=int(counts[FrameKind.NESTED]),
            frames_reserve=int(counts[FrameKind.RESERVE]),
            demand_allocated=int(block.frames_demand_allocated),
            **self._counts,
            **{name: int(getattr(block, name)) for name in names},
        )

    def power_off(self) -> None:
        """Give every frame back. The VM's memory is gone; calling again does nothing."""
        if self._off:
            return
        self._off = True
        shared: Frames = self.pmap.frame[self.pmap.state == PageState.SHARED]
        for mpn in shared.tolist():  # one frame may back several pages
            self.machine.release(mpn)
        self.machine.release(self.machine.owned_by(self.vm_id))
        self.pmap.state[:] = PageState.UNMAPPED
        self.control.reserve_count = 0
