# SPDX-License-Identifier: Apache-2.0
"""The one owner of the question "where is this page's content".

Whoever wants to find, read, move or drop the content of a guest-physical page asks
``PageContents``: monitor, eviction, balloon, checker, observers and snapshots. A page is in exactly
one place: nowhere (``UNMAPPED``: it reads as zeroes), in a frame (``RESIDENT``), or kept in a
backing store (``KEPT``), where the pmap has the slot in place of the MPN.

The stores have names: "compress" and "swap" have page states of their own, pages of any other
store are ``STORED``. In which order stores are tried is the VMkernel's policy (``vmm.eviction``).

All methods are called only while the VM's processor is stopped. Those that change where content is
take translations back themselves (``invalidate``) before a frame changes its use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES, MachinePageNumber, MpnArray, PhysicalPageNumber, PpnArray
from memvirt.machine.content import Pages
from memvirt.machine.memory import FrameKind, MachineMemory

from .pmap import KEPT, RESIDENT, PageState, Pmap, is_resident
from .reserve import FrameReserve
from .stores.backing import BackingStore, Slots

COMPRESS, SWAP = "compress", "swap"
_STATES = {COMPRESS: PageState.COMPRESSED, SWAP: PageState.SWAPPED}
_NAMES = {state: name for name, state in _STATES.items()}


@dataclass(frozen=True, slots=True)
class PageLocation:
    """Where one page's content is: in frame ``mpn``, in ``slot`` of ``store``, or nowhere."""

    state: PageState
    mpn: MachinePageNumber | None = None
    store: str | None = None
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class StoreUse:
    """What one store holds of the VM, and what went through it since power-on, in pages."""

    pages: int = 0
    frames: int = 0  # of machine memory
    put_total: int = 0
    taken_total: int = 0  # brought back to the guest


class PageContents:
    """The content of the pages of ``pmap``, a VM on ``machine`` with number ``vm_id``.

    ``reserve`` gives frames for pages that come back. ``invalidate`` takes back all translations
    of resident pages; it is called before the frame of any of them changes.
    """

    def __init__(
        self,
        machine: MachineMemory,
        pmap: Pmap,
        reserve: FrameReserve,
        vm_id: int,
        invalidate: Callable[[PpnArray], None],
    ) -> None:
        self.machine = machine
        self.pmap = pmap
        self.reserve = reserve
        self.vm_id = vm_id
        self.invalidate = invalidate
        self._stores: dict[str, BackingStore] = {}
        self._put: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self._elsewhere: dict[
            PhysicalPageNumber, str
        ] = {}  # the store, of the pages that are STORED

    # Stores ------------------------------------------------------------------------------------

    @property
    def stores(self) -> Mapping[str, BackingStore]:
        """The VM's stores by name, in the order they were added."""
        return self._stores

    def set_store(self, name: str, store: BackingStore | None) -> None:
        """Keep pages in ``store`` under ``name`` from now on; None: nowhere under this name.

        Raises ValueError, with nothing changed, if the store there now still has pages.
        """
        if name in self._stores and self.kept_in(name).size:
            raise ValueError(f'store "{name}" still has pages: it cannot be replaced')
        if store is None:
            self._stores.pop(name, None)
            return
        self._stores[name] = store
        self._put.setdefault(name, 0)
        self._taken.setdefault(name, 0)

    def use(self) -> dict[str, StoreUse]:
        """What each store holds and has done, by name."""
        return {
            name: StoreUse(
                pages=self._pages_in(name),
                frames=store.frames,
                put_total=self._put[name],
                taken_total=self._taken[name],
            )
            for name, store in self._stores.items()
        }

    def _pages_in(self, name: str) -> int:
        state = _STATES.get(name)
        if state is not None:
            return self.pmap.count(state)
        return sum(store == name for store in self._elsewhere.values())

    def total_put(self, name: str) -> int:
        """Pages that went into store ``name`` since power-on; 0 if there is none."""
        return self._put.get(name, 0)

    def total_taken(self, name: str) -> int:
        """Pages that store ``name`` gave back to the guest since power-on; 0 if there is none."""
        return self._taken.get(name, 0)

    def kept_in(self, name: str) -> PpnArray:
        """PPNs of the pages in store ``name``, ascending; none if there is no such store."""
        state = _STATES.get(name)
        if state is not None:
            return PpnArray(np.flatnonzero(self.pmap.state == state))
        found = [ppn for ppn, store in self._elsewhere.items() if store == name]
        return PpnArray(np.array(sorted(found), np.int64))

    def settle(self) -> None:
        """Let the stores give back frames that are empty. Called with every processor stopped."""
        for store in self._stores.values():
            store.settle()

    # Where it is, and what it is: nothing changes -----------------------------------------------

    def locate(self, ppn: PhysicalPageNumber) -> PageLocation:
        """Where the content of ``ppn`` is. Raises IndexError beyond the VM's memory."""
        state = self.pmap.state_of(ppn)
        value = int(self.pmap.frame[ppn])
        if state in RESIDENT:
            return PageLocation(state, mpn=MachinePageNumber(value))
        if state in KEPT:
            return PageLocation(state, store=self._store_name(ppn, state), slot=value)
        return PageLocation(state)

    def _store_name(self, ppn: PhysicalPageNumber, state: PageState) -> str:
        return _NAMES[state] if state in _NAMES else self._elsewhere[ppn]

    def read(self, ppn: PhysicalPageNumber) -> bytes:
        """The 4096 bytes of ``ppn`` as the guest would read them; changes nothing.

        Raises IndexError beyond the VM's memory, BackingStoreError if the page cannot be read
        now, PageCorrupted if it is lost.
        """
        location = self.locate(ppn)
        if location.mpn is not None:
            return self.machine.page(location.mpn).tobytes()
        if location.store is not None and location.slot is not None:
            return self._stores[location.store].read(location.slot)
        return bytes(PAGE_BYTES)

    def kept(self) -> PpnArray:
        """PPNs of all pages that are in a store."""
        return PpnArray(np.flatnonzero(np.isin(self.pmap.state, KEPT)))

    # Back to the guest -------------------------------------------------------------------------

    def take_back(self, ppn: PhysicalPageNumber, *, write: bool) -> int:
        """Make ``ppn`` resident, and private if ``write``; returns nanoseconds the guest waits.

        Raises MachineMemoryExhausted or FramesWanted if there is no frame, BackingStoreError if
        the page cannot be read now, PageCorrupted if it is lost: with nothing changed.
        """
        location = self.locate(ppn)
        if location.state is PageState.SHARED and write:
            self._unshare(ppn)
        elif location.state is PageState.UNMAPPED:
            self._resident(ppn, self.reserve.take(ppn))
        elif location.store is not None and location.slot is not None:
            store = self._stores[location.store]
            mpn = self.reserve.take(ppn)
            try:
                content = store.take(location.slot)
            except BaseException:
                self.reserve.put_back(mpn)
                raise
            self.machine.page(mpn)[:] = np.frombuffer(content, np.uint8)
            self._elsewhere.pop(ppn, None)
            self._resident(ppn, mpn)
            self._taken[location.store] += 1
            return store.wait_ns
        return 0

    def _resident(self, ppn: PhysicalPageNumber, mpn: MachinePageNumber) -> None:
        self.pmap.frame[ppn] = mpn
        self.pmap.set_state(ppn, PageState.PRIVATE)

    def _unshare(self, ppn: PhysicalPageNumber) -> None:
        """Copy on write; the last user of a shared frame gets the frame itself."""
        page = PpnArray(np.array([ppn], np.int64))
        shared = self.pmap.mpn_of(ppn)
        if self.machine.references[shared] == 1:
            self.invalidate(page)
            self.machine.kind[shared] = FrameKind.GUEST
            self.machine.owner[shared] = self.vm_id
            self.machine.guest_ppn[shared] = ppn
        else:
            new = self.reserve.take(ppn)
            self.invalidate(page)
            self.machine.page(new)[:] = self.machine.page(shared)
            self.pmap.frame[ppn] = new
            self.reserve.give_up(shared)
        self.pmap.set_state(ppn, PageState.PRIVATE)

    # In a shared frame -------------------------------------------------------------------------

    def make_shared(self, ppns: PpnArray, salt: int) -> MpnArray:
        """Make the frames of private pages (distinct) shared ones of ``salt``; their MPNs."""
        self.invalidate(ppns)
        mpns = self.pmap.mpns_of(ppns)
        self.machine.kind[mpns] = FrameKind.SHARED
        self.machine.references[mpns] = 1
        self.machine.set_share_salt(mpns, salt)
        self.pmap.set_states(ppns, PageState.SHARED)
        return mpns

    def share(self, ppns: PpnArray, mpns: MpnArray) -> None:
        """Let private pages (distinct) use the shared frame beside each, their own are released.

        Obligation: each equals its frame in full, and the frames are of the VM's salt.
        """
        self.invalidate(ppns)
        old = self.pmap.mpns_of(ppns)
        self.machine.add_references(mpns)
        self.pmap.frame[ppns] = mpns
        self.pmap.set_states(ppns, PageState.SHARED)
        self.machine.release(old)

    # Elsewhere ---------------------------------------------------------------------------------

    def move(self, ppns: PpnArray) -> None:
        """Give each of ``ppns`` (distinct, private) another frame with the same content.

        Raises MachineMemoryExhausted before anything has changed.
        """
        old = self.pmap.mpns_of(ppns)
        new = self.machine.allocate(ppns.size, kind=FrameKind.GUEST, owner=self.vm_id)
        self.invalidate(ppns)
        self.replace_frames(ppns, new)
        self.machine.release(old)

    def replace_frames(self, ppns: PpnArray, mpns: MpnArray) -> None:
        """Copy the content of private pages to the frames ``mpns``, theirs from now on.

        Obligations: the caller has taken the translations back, and releases the old frames.
        """
        content = self.machine.content.reshape(-1, PAGE_BYTES)
        content[mpns] = content[self.pmap.frame[ppns]]
        self.machine.guest_ppn[mpns] = ppns
        self.pmap.frame[ppns] = mpns

    def discard(self, ppns: PpnArray) -> None:
        """Drop the content of ``ppns`` (distinct), wherever it is: they read as zeroes now."""
        states = self.pmap.state[ppns]
        resident = ppns[is_resident(states)]
        self.invalidate(resident)
        for name, store in self._stores.items():
            mine = ppns[self._is_in(name, ppns)]
            if mine.size:
                store.discard(self.pmap.frame[mine].tolist())
        for ppn in ppns[states == PageState.STORED].tolist():
            del self._elsewhere[ppn]
        if resident.size:
            self.reserve.give_up(self.pmap.mpns_of(resident))
        self.empty(ppns)

    def _is_in(self, name: str, ppns: PpnArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
        state = _STATES.get(name)
        if state is not None:
            return np.asarray(self.pmap.state[ppns] == state)
        return np.array([self._elsewhere.get(ppn) == name for ppn in ppns.tolist()], np.bool_)

    # For eviction: the caller moves content in steps, and completes what it begins ---------------

    def empty(self, ppns: PpnArray) -> None:
        """Note that ``ppns`` are nowhere. Whoever had their content has let go of it."""
        self.pmap.frame[ppns] = 0
        self.pmap.set_states(ppns, PageState.UNMAPPED)

    def put(self, name: str, ppns: PpnArray, contents: Pages) -> Slots:
        """Put pages (a row of ``contents`` each) into store ``name``, for those it takes.

        Returns a slot each, REFUSED or FULL. Obligation: nothing else has the content of a page
        that was taken, but for another store, which the caller makes forget it.
        """
        slots = self._stores[name].put(ppns, contents)
        done = ppns[slots >= 0]
        self.pmap.frame[done] = slots[slots >= 0]
        self.pmap.set_states(done, _STATES.get(name, PageState.STORED))
        for ppn in done.tolist():
            if name in _STATES:
                self._elsewhere.pop(ppn, None)
            else:
                self._elsewhere[ppn] = name
        self._put[name] += int(done.size)
        return slots

    def put_in_frames(self, ppns: PpnArray, contents: Pages) -> None:
        """Give pages nobody took frames again. Raises MachineMemoryExhausted."""
        if ppns.size == 0:
            return
        mpns = self.machine.allocate(ppns.size, kind=FrameKind.GUEST, owner=self.vm_id)
        self.machine.guest_ppn[mpns] = ppns
        self.machine.content.reshape(-1, PAGE_BYTES)[mpns] = contents
        self.pmap.frame[ppns] = mpns
        self.pmap.set_states(ppns, PageState.PRIVATE)
