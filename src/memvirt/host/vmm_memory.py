# SPDX-License-Identifier: Apache-2.0
"""The VMM of the software processor as the VMkernel sees it: it has all there is."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from memvirt.address import PAGE_BYTES, MachinePageNumber, MpnArray, PhysicalPageNumber, PpnArray
from memvirt.machine.content import hash_pages
from memvirt.share_table import ShareTable
from memvirt.vmkernel.protocols import (
    Balloon,
    Eviction,
    Flags,
    Hashes,
    KeptPages,
    MemoryUsage,
    Place,
)
from memvirt.vmm.census import SharedCost
from memvirt.vmm.eviction import EvictionOrder
from memvirt.vmm.monitor import VirtualMachineMonitor
from memvirt.vmm.pmap import LARGE_PAGES, PageState
from memvirt.vmm.stores.backing import BackingStoreError, PageCorrupted
from memvirt.vmm.stores.swap_file import SwapFile

_FEW_FRAMES = 4


@functools.cache
def _zero_hash() -> int:
    return int(hash_pages(np.zeros(PAGE_BYTES, np.uint8), np.zeros(1))[0])


class VmmMemory:
    """The memory of one VM behind its VMM; ``swap`` is its swap file, ``balloon`` its device.

    ``notices_writes``: pages that are hashed are watched for writes. Of those who have hashes of
    one VM's pages, one at most may rely on that.
    """

    def __init__(
        self,
        vmm: VirtualMachineMonitor,
        *,
        swap: SwapFile | None = None,
        balloon: Balloon | None = None,
        notices_writes: bool = True,
    ) -> None:
        self.vmm = vmm
        self._shared_cost = SharedCost(vmm.machine, vmm.pmap)
        self._notices_writes = notices_writes
        self._swap = swap
        self._balloon = balloon

    @property
    def vm_id(self) -> int:
        return self.vmm.vm_id

    @property
    def share_salt(self) -> int:
        return self.vmm.share_salt

    @property
    def pages(self) -> int:
        return self.vmm.pmap.pages

    granule = 1

    @property
    def balloon(self) -> Balloon | None:
        return self._balloon

    @property
    def sampling(self) -> VmmMemory:
        return self

    @property
    def reclaim(self) -> VmmMemory:
        return self

    @property
    def sharing(self) -> VmmMemory:
        return self

    @property
    def frames(self) -> VmmMemory:
        return self

    @property
    def large_pages(self) -> VmmMemory | None:
        """Only a nested table has large entries."""
        return self if self.vmm.page_tables.has_large_pages else None

    def usage(self) -> MemoryUsage:
        """As ``GuestMemory``: kept count of as pages change, not counted here."""
        vmm, pmap = self.vmm, self.vmm.pmap
        states = pmap.counts.tolist()
        return MemoryUsage(
            private=states[PageState.PRIVATE],
            shared=states[PageState.SHARED],
            shared_cost=self._shared_cost(),
            unmapped=states[PageState.UNMAPPED],
            kept={
                name: KeptPages(use.pages, use.frames, use.put_total, use.taken_total)
                for name, use in vmm.contents.use().items()
            },
            table_frames=vmm.page_tables.table_frames,
            reserve_frames=vmm.reserve.count,
            large=LARGE_PAGES * int(np.count_nonzero(pmap.large)),
        )

    # Sampling

    def begin_sample(self, ppns: PpnArray) -> None:
        self.vmm.begin_sample(ppns)

    def untouched(self, ppns: PpnArray) -> Flags:
        return self.vmm.untouched(ppns)

    def watch(self, ppns: PpnArray) -> None:
        self.vmm.watch(ppns)

    def idle(self, ppns: PpnArray) -> Flags:
        return self.vmm.idle(ppns)

    # Sharing

    @property
    def zero_hash(self) -> int:
        return _zero_hash()

    def private(self, ppns: PpnArray) -> PpnArray:
        return ppns[self.vmm.pmap.state[ppns] == PageState.PRIVATE]

    def hash_pages(self, ppns: PpnArray) -> Hashes:
        if self._notices_writes:
            self.vmm.notice_writes(ppns)
        return self.vmm.hash_pages(ppns)

    def share_known(self, ppns: PpnArray, table: ShareTable) -> tuple[Hashes, Flags]:
        hashes, shared = self.vmm.share_known(ppns, table)
        if self._notices_writes:
            self.vmm.notice_writes(ppns[~shared])
        return hashes, shared

    def unwritten(self, ppns: PpnArray) -> Flags:
        if not self._notices_writes:
            return np.zeros(ppns.size, np.bool_)
        return self.vmm.unwritten(ppns)

    def make_shared(self, ppns: PpnArray) -> MpnArray:
        return self.vmm.make_all_shared(ppns)

    def may_share(self, mpns: MpnArray) -> Flags:
        return self.vmm.may_share(mpns)

    def share(self, ppns: PpnArray, mpns: MpnArray) -> PpnArray:
        return self.vmm.share(ppns, mpns)

    def mapped_to(self, mpns: Sequence[MachinePageNumber]) -> int:
        pmap = self.vmm.pmap
        shared = pmap.frame[pmap.state == PageState.SHARED]
        if len(mpns) <= _FEW_FRAMES:  # one, of zeroes, as a rule
            return sum(int(np.count_nonzero(shared == mpn)) for mpn in mpns)
        return int(np.count_nonzero(np.isin(shared, mpns)))

    # Large pages

    pages_each = LARGE_PAGES

    def in_large_page(self, ppns: PpnArray) -> Flags:
        return self.vmm.pmap.in_large_page(ppns)

    def make_large(self, most: int) -> int:
        pmap = self.vmm.pmap
        runs = pmap.pages // LARGE_PAGES
        private = (pmap.state[: runs * LARGE_PAGES] == PageState.PRIVATE).reshape(-1, LARGE_PAGES)
        whole = np.flatnonzero(private.all(axis=1) & (pmap.large[:runs] == 0))
        for made, run in enumerate(whole[:most].tolist()):
            if not self.vmm.make_large(PhysicalPageNumber(run * LARGE_PAGES)):
                return made or -1
        return min(int(whole.size), most)

    def break_large(self, most: int) -> int:
        runs = np.flatnonzero(self.vmm.pmap.large)[:most]
        for run in runs.tolist():
            self.vmm.break_large(PhysicalPageNumber(run * LARGE_PAGES))
        return int(runs.size)

    # Reclaim

    def reclaimable_pages(self) -> PpnArray:
        pmap = self.vmm.pmap
        alone = np.flatnonzero(pmap.state == PageState.SHARED)
        alone = alone[self.vmm.machine.references[pmap.frame[alone]] == 1]
        return PpnArray(np.concatenate((np.flatnonzero(pmap.state == PageState.PRIVATE), alone)))

    def reclaimable(self, ppns: PpnArray) -> Flags:
        pmap = self.vmm.pmap
        states = pmap.state[ppns]
        fit = np.asarray(states == PageState.PRIVATE)
        shared = np.flatnonzero(states == PageState.SHARED)
        fit[shared] = self.vmm.machine.references[pmap.frame[ppns[shared]]] == 1
        return fit

    def shared_pages(self) -> PpnArray:
        return PpnArray(np.flatnonzero(self.vmm.pmap.state == PageState.SHARED))

    def evict(self, ppns: PpnArray, places: Sequence[Place]) -> Eviction:
        keeping = [place.name for place in places if not place.drops]
        spilling = frozenset(place.name for place in places if place.spills)
        drops = [place.name for place in places if place.drops]
        order = EvictionOrder(tuple(keeping), spilling, drop_zeroes=bool(drops))
        eviction = self.vmm.unmap(ppns, order)
        placed = {name: eviction.put_into(name) for name in keeping}
        placed |= dict.fromkeys(drops[:1], eviction.discarded)  # all that is dropped is zeroes
        return Eviction(placed, eviction.refused)

    def restore(self, most: int) -> int:
        """As ``PageReclaim``. The guest waits for none of it, and has touched nothing."""
        restored = 0
        for ppn in self.vmm.contents.kept()[:most].tolist():
            if self.vmm.reserve.count == 0 and self.vmm.reserve.grant(most - restored) == 0:
                break
            try:
                self.vmm.contents.take_back(ppn, write=False)
            except BackingStoreError:
                break
            except PageCorrupted:
                continue  # that it is lost is the matter of the guest when it touches it
            restored += 1
        return restored

    def settle(self) -> None:
        self.vmm.settle()
        if self._swap is not None:
            self._swap.complete()

    def submit_writes(self) -> None:
        if self._swap is not None:
            self._swap.submit()

    @property
    def trouble(self) -> str:
        if self._swap is None or self._swap.error is None:
            return ""
        return f"{self._swap.path}: {self._swap.error.strerror}"

    # Frames

    @property
    def reserve(self) -> int:
        return self.vmm.reserve.count

    def grant(self, frames: int) -> int:
        return self.vmm.reserve.grant(frames)

    def give_back(self, keep: int) -> int:
        return self.vmm.reserve.give_back(keep)
