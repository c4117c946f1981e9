# SPDX-License-Identifier: Apache-2.0
"""The virtual machine monitor (VMM) of one VM: its pmap and its shadow or nested page tables.

Everything the host does to a VM's memory behind the guest's back happens through the methods of
``VirtualMachineMonitor``. They are called only while the VM's processor is stopped; the processor
drops what it cached (``take_stale``) before it runs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memvirt.address import (
    PAGE_BYTES,
    GuestPhysicalAddress,
    MachinePageNumber,
    MpnArray,
    PhysicalPageNumber,
    PpnArray,
    page_offset,
    physical_page_number,
)
from memvirt.machine.content import Hashes, equal_pages, hash_pages
from memvirt.machine.memory import FrameKind, MachineMemory
from memvirt.mmu.host_ranges import host_address
from memvirt.mmu.page_state import (
    FLAG_BALLOONED,
    FLAG_SAMPLED,
    FLAG_SHADOWED,
    FLAG_UNWRITTEN,
    FLAG_WATCHED,
    FLAG_WRITE_CACHED,
    FLAGS_UNTIL_TOUCHED,
)
from memvirt.share_table import ShareTable
from memvirt.state_record import new_record, record_word

from .content import SWAP, PageContents
from .eviction import Eviction, EvictionOrder, default_order, evict
from .large_pages import back_by_large_page
from .memory_statistics import COUNTED, MemoryStatistics, memory_statistics
from .paging.build import new_paging
from .paging.mode import PagingMode
from .pmap import KEPT, LARGE_PAGES, RESIDENT, PageState, Pmap
from .reserve import FrameReserve
from .set_up import set_up_state
from .stale import Stale, StaleLog
from .stores.backing import BackingStore
from .stores.held_pages import HeldPages
from .vmm_state import VMM_DTYPE, VmmState

PpnsLike = Sequence[PhysicalPageNumber] | PpnArray
MpnsLike = Sequence[MachinePageNumber] | MpnArray
Flags = np.ndarray[Any, np.dtype[np.bool_]]
_PRIVATE = (PageState.PRIVATE,)

__all__ = ["PagingMode", "VirtualMachineMonitor"]


class VirtualMachineMonitor:
    """The VMM of VM ``vm_id`` with ``pages`` guest-physical pages on ``machine``.

    ``share_salt`` (0 or more) bounds page sharing: a shared frame is used by VMs of one salt only.
    Raises MachineMemoryExhausted, with no frame taken, if not even its tables' first frames can be
    had.
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
        self.share_salt = 0
        self._record = new_record(VMM_DTYPE)
        self.state: VmmState = self._record[0]
        self._shadow_stale = record_word(self._record, "shadow", "stale")
        self._address = host_address(self._record, f"state of the VMM of VM {vm_id}")
        self.reserve = FrameReserve(machine, vm_id, self._record)
        self.contents = PageContents(machine, self.pmap, self.reserve, vm_id, self._invalidate)
        self.contents.set_store(SWAP, backing if backing is not None else HeldPages())
        self.counts = dict.fromkeys(COUNTED, 0)
        self._stale = StaleLog()
        self._off = False
        set_up_state(self.state, machine, self.pmap, int(paging), vm_id)
        try:
            if paging is not PagingMode.FLAT:
                self.reserve.refill()
            self.page_tables = new_paging(paging, self.state, machine, self.pmap)
        except BaseException:
            self.reserve.give_back(0)
            raise

    @property
    def state_address(self) -> int:
        """Host address of ``state``, valid as long as this object."""
        return self._address

    # What the processor must drop --------------------------------------------------------------

    def take_stale(self) -> Stale:
        """What to drop before the processor runs again; asking forgets it."""
        return self._stale.take(flush=bool(self._shadow_stale[0]))

    def _invalidate(self, ppns: PpnArray, *, breaking: bool = True) -> None:
        """Take back all translations of resident pages whose frames are about to change.

        Large pages that hold them are broken, unless the frames stay (not ``breaking``).
        """
        if ppns.size == 0:
            return
        if breaking and self.pmap.large.any():
            runs = np.unique(ppns // LARGE_PAGES)
            self.counts["large_breaks"] += int(np.count_nonzero(self.pmap.large[runs]))
            self.pmap.large[runs] = 0
        self.page_tables.invalidate(ppns)
        shared = self.pmap.state[ppns] == PageState.SHARED
        self.pmap.flags[ppns] &= np.uint8(0xFF ^ FLAG_WRITE_CACHED)
        self._stale.flush()
        self._stale.add(ppns, self.pmap.mpns_of(ppns), shared)

    def _select(self, ppns: PpnsLike, states: Sequence[PageState]) -> PpnArray:
        wanted = PpnArray(np.unique(np.asarray(ppns, np.int64)))
        self.pmap.check_all(wanted)
        return wanted[np.isin(self.pmap.state[wanted], states)]

    # Remapping without the guest's knowledge ---------------------------------------------------

    def move(self, ppns: PpnsLike) -> int:
        """Give each private page among ``ppns`` another frame with the same content.

        Returns how many were moved. Raises MachineMemoryExhausted before anything has changed.
        """
        pages = self._select(ppns, _PRIVATE)
        if pages.size:
            self.contents.move(pages)
        self.counts["moved"] += int(pages.size)
        return int(pages.size)

    def make_large(self, first_ppn: PhysicalPageNumber) -> bool:
        """Back 512 private pages from ``first_ppn`` on by one large page of 2 MiB.

        They move to an aligned run of frames, mapped by one nested entry until one of them is
        shared, unmapped or moved. Returns False, with nothing changed, if not all are private, or
        already large, or if no run of frames is free. Raises ValueError if ``first_ppn`` is no
        multiple of 512, or if this VM's page tables have no large entries.
        """
        pages = PpnArray(np.arange(first_ppn, first_ppn + LARGE_PAGES))
        run = first_ppn // LARGE_PAGES
        if not self.page_tables.has_large_pages or first_ppn % LARGE_PAGES:
            raise ValueError(f"PPN {first_ppn:#x} cannot begin a large page in this VM")
        if self.pmap.pages < first_ppn + LARGE_PAGES or self.pmap.large[run]:
            return False
        if not back_by_large_page(self.contents, self.page_tables, pages):
            return False
        self.pmap.large[run] = 1
        self.counts["moved"] += LARGE_PAGES
        self.counts["large_made"] += 1
        return True

    def break_large(self, first_ppn: PhysicalPageNumber) -> None:
        """Map the pages of a large page one by one again, as they are touched."""
        self._invalidate(PpnArray(np.arange(first_ppn, first_ppn + LARGE_PAGES)))

    def unmap(self, ppns: PpnsLike, order: EvictionOrder | None = None) -> Eviction:
        """Take the frames of the resident pages among ``ppns``; their content is kept elsewhere.

        ``order`` says where; without it ``eviction.default_order`` does. The next access of the
        guest brings a page back. Where the pages went is the result; a page that no store takes
        stays as it was.
        """
        pages = self._select(ppns, RESIDENT)
        eviction = evict(self.contents, pages, order or default_order(self.contents))
        self.counts["unmapped_by_host"] += eviction.unmapped
        self.counts["discarded"] += eviction.discarded
        return eviction

    # Sharing -----------------------------------------------------------------------------------

    def hash_pages(self, ppns: PpnsLike) -> Hashes:
        """XXH3-64 of the content of resident pages, in the order of ``ppns``."""
        return hash_pages(self.machine.content, self.pmap.frame[np.asarray(ppns, np.int64)])

    def notice_writes(self, ppns: PpnsLike) -> None:
        """Notice from now on whether each private page among ``ppns`` is written to.

        Nothing in flat mode, where the processor writes without asking.
        """
        pages = PpnArray(np.asarray(ppns, np.int64))
        self.pmap.check_all(pages)
        if not self.page_tables.remaps:
            return
        pages = pages[self.pmap.state[pages] == PageState.PRIVATE]
        flags = self.pmap.flags[pages]
        if (flags & FLAG_WRITE_CACHED).any():
            self._stale.flush()  # or it would write through a translation it has
        self.pmap.flags[pages] = (flags | FLAG_UNWRITTEN) & np.uint8(0xFF ^ FLAG_WRITE_CACHED)

    def unwritten(self, ppns: PpnsLike) -> Flags:
        """Which of ``ppns`` nobody has written to since ``notice_writes``; all are private.

        Guest, devices and host count alike, also for a page that was moved meanwhile. One whose
        frame was shared or taken, and came back, counts as written.
        """
        return self._has_flag(ppns, FLAG_UNWRITTEN)

    def make_shared(self, ppn: PhysicalPageNumber) -> MachinePageNumber:
        """Make the frame of private page ``ppn`` one that others may share; returns its MPN.

        From now on nobody, this VM included, writes to it in place. Raises ValueError if the page
        is not private.
        """
        return MachinePageNumber(int(self.make_all_shared([ppn])[0]))

    def make_all_shared(self, ppns: PpnsLike) -> MpnArray:
        """As ``make_shared``, for distinct private pages; returns their MPNs in this order.

        Raises ValueError, with nothing changed, if a page is not private.
        """
        pages = self._private(ppns)
        self.counts["shares"] += int(pages.size)
        return self.contents.make_shared(pages, self.share_salt)

    def _private(self, ppns: PpnsLike) -> PpnArray:
        pages = PpnArray(np.asarray(ppns, np.int64))
        self.pmap.check_all(pages)
        wrong = pages[self.pmap.state[pages] != PageState.PRIVATE]
        if wrong.size:
            state = self.pmap.state_of(PhysicalPageNumber(int(wrong[0])))
            raise ValueError(f"PPN {wrong[0]:#x} is {state.name.lower()}, not private")
        return pages

    def may_share(self, mpns: MpnsLike | MachinePageNumber) -> Flags:
        """Which of ``mpns`` are shared frames of this VM's salt."""
        frames = MpnArray(np.asarray(mpns, np.int64))
        return np.asarray(
            (self.machine.kind[frames] == FrameKind.SHARED)
            & (self.machine.share_salt(frames) == self.share_salt)
        )

    def share(self, ppns: PpnsLike, mpns: MpnsLike | MachinePageNumber) -> PpnArray:
        """Let private pages use shared frames of equal content, copy-on-write from then on.

        ``ppns`` are distinct; ``mpns`` has the frame for each, or is one frame for all. Returns the
        PPNs that now share; the others (not private, or not equal in full) are as they were.
        Raises ValueError, with nothing changed, if an MPN is not a shared frame of this VM's salt.
        """
        wanted = PpnArray(np.asarray(ppns, np.int64))
        frames = MpnArray(np.broadcast_to(np.asarray(mpns, np.int64), wanted.shape))
        wrong = frames[~self.may_share(frames)]
        if wrong.size:
            kind = FrameKind(int(self.machine.kind[wrong[0]])).name
            raise ValueError(
                f"MPN {wrong[0]:#x} is {kind}, not a SHARED frame of salt {self.share_salt}"
            )
        self.pmap.check_all(wanted)
        fit = self.pmap.state[wanted] == PageState.PRIVATE
        pages, frames = wanted[fit], frames[fit]
        fit = equal_pages(self.machine.content, self.pmap.frame[pages], frames)
        pages = pages[fit]
        self._share(pages, frames[fit])
        return pages

    def share_known(self, ppns: PpnsLike, table: ShareTable) -> tuple[Hashes, Flags]:
        """As ``hash_pages`` for private pages (distinct), which share frames of ``table``.

        Returns the hashes, and which pages now share: those for whose hash ``table`` has a shared
        frame of this VM's salt, equal in full. Raises ValueError, with nothing changed, if a page
        is not private.
        """
        pages = self._private(ppns)
        hashes, mpns = self.machine.find_equal(self.pmap.mpns_of(pages), table, self.share_salt)
        equal = mpns >= 0
        self._share(pages[equal], MpnArray(mpns[equal]))
        return hashes, equal

    def _share(self, pages: PpnArray, frames: MpnArray) -> None:
        if pages.size:
            self.contents.share(pages, frames)
            self.counts["shares"] += int(pages.size)

    # Bringing pages back -----------------------------------------------------------------------

    def bring_back(self, ppn: PhysicalPageNumber, *, write: bool) -> None:
        """Make ``ppn`` accessible: what the exit NEED_PAGE asks for.

        Raises MachineMemoryExhausted or FramesWanted if there is no frame, BackingStoreError if
        the page cannot be read now, PageCorrupted if it is lost: with nothing changed.
        """
        state = self.pmap.state_of(ppn)
        wait_ns = self.contents.take_back(ppn, write=write)
        ended = FLAGS_UNTIL_TOUCHED | (FLAG_UNWRITTEN if write else 0)
        self.pmap.flags[ppn] &= ~np.uint8(ended)
        if state in KEPT:
            self.counts["brought_back"] += 1
            self.state.stall_ns += wait_ns
        elif state is PageState.SHARED and write:
            self.counts["share_breaks"] += 1
        elif state is PageState.UNMAPPED:
            self.state.frames_demand_allocated += 1
            if self.pmap.flags[ppn] & FLAG_BALLOONED:
                self.pmap.flags[ppn] &= 0xFF ^ FLAG_BALLOONED
                self.state.ballooned_pages -= 1
                self.state.balloon_touched += 1

    # Sampling ----------------------------------------------------------------------------------

    def begin_sample(self, ppns: PpnsLike) -> None:
        """Take the translations of ``ppns`` back, so that the next access to each is noticed."""
        self.notice_access(ppns, FLAG_SAMPLED)

    def watch(self, ppns: PpnsLike) -> None:
        """As ``begin_sample``, for the choice of pages to reclaim: the two do not disturb."""
        self.notice_access(ppns, FLAG_WATCHED)

    def notice_access(self, ppns: PpnsLike, flag: int) -> None:
        """Set ``flag``, one of FLAGS_UNTIL_TOUCHED, so that the next access to each clears it."""
        pages = PpnArray(np.unique(np.asarray(ppns, np.int64)))
        resident = self._select(pages, RESIDENT)
        self._invalidate(resident, breaking=False)
        self.pmap.flags[pages] |= np.uint8(flag)

    def untouched(self, ppns: PpnsLike) -> Flags:
        """Which of ``ppns`` have been sampled and not been accessed since."""
        return self._has_flag(ppns, FLAG_SAMPLED)

    def idle(self, ppns: PpnsLike) -> Flags:
        """Which of ``ppns`` have been watched and not been accessed since."""
        return self._has_flag(ppns, FLAG_WATCHED)

    def _has_flag(self, ppns: PpnsLike, flag: int) -> Flags:
        return (self.pmap.flags[np.asarray(ppns, np.int64)] & np.uint8(flag)) != 0

    # The guest's memory as the host sees it ----------------------------------------------------

    def read_page(self, ppn: PhysicalPageNumber) -> bytes:
        """The 4096 bytes of ``ppn`` as the guest would read them; changes nothing."""
        return self.contents.read(ppn)

    def read_physical(self, gpa: GuestPhysicalAddress, count: int) -> bytes:
        """``count`` bytes at guest-physical address ``gpa``. Raises IndexError beyond memory."""
        pieces = []
        while count > 0:
            ppn, offset = physical_page_number(gpa), page_offset(gpa)
            size = min(count, PAGE_BYTES - offset)
            pieces.append(self.read_page(ppn)[offset : offset + size])
            gpa, count = GuestPhysicalAddress(gpa + size), count - size
        return b"".join(pieces)

    def write_physical(self, gpa: GuestPhysicalAddress, data: bytes) -> None:
        """Store ``data`` at guest-physical address ``gpa``, as a device or a loader does.

        Raises IndexError beyond the VM's memory, MachineMemoryExhausted without frames.
        """
        view = memoryview(data)
        while view:
            ppn, offset = physical_page_number(gpa), page_offset(gpa)
            size = min(len(view), PAGE_BYTES - offset)
            self.bring_back(ppn, write=True)
            mpn = self.pmap.mpn_of(ppn)
            page = PpnArray(np.array([ppn], np.int64))
            if self.pmap.flags[ppn] & FLAG_SHADOWED:
                self._invalidate(page)
                self.page_tables.forget_guest_tables()
            else:
                self._stale.add(page, self.pmap.mpns_of(page))
            self.machine.page(mpn)[offset : offset + size] = np.frombuffer(view[:size], np.uint8)
            view, gpa = view[size:], GuestPhysicalAddress(gpa + size)

    # ------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Release what was given up while the VM ran. Called with every processor stopped."""
        self.reserve.settle()
        self.contents.settle()

    def statistics(self) -> MemoryStatistics:
        """Pages by state, frames by use, and what was done since power-on."""
        return memory_statistics(self.contents, self.state, self.counts)

    def power_off(self) -> None:
        """Give every frame back. The VM's memory is gone; calling again does nothing."""
        if self._off:
            return
        self._off = True
        self.settle()
        self.machine.release(MpnArray(self.pmap.frame[self.pmap.state == PageState.SHARED]))
        self.machine.release(self.machine.owned_by(self.vm_id))
        self.pmap.set_states(slice(None), PageState.UNMAPPED)
        self.state.reserve_count = 0
