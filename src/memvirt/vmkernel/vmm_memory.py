# SPDX-License-Identifier: Apache-2.0
"""``GuestMemory`` on the VMM of the software processor."""

from __future__ import annotations

from typing import Any

import numpy as np

from memvirt.machine.content import Hashes
from memvirt.vmm.census import census
from memvirt.vmm.eviction import Eviction
from memvirt.vmm.monitor import VirtualMachineMonitor
from memvirt.vmm.pmap import LARGE_PAGES, PageState

from .guest_memory import Balloon, GuestUsage, Ppns
from .swap import SwapFile


class VmmMemory:
    """The memory of one VM behind its VMM; ``swap`` is its swap file, ``balloon`` its device."""

    def __init__(
        self,
        vmm: VirtualMachineMonitor,
        *,
        swap: SwapFile | None = None,
        balloon: Balloon | None = None,
    ) -> None:
        self.vmm = vmm
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

    @property
    def balloon(self) -> Balloon | None:
        return self._balloon

    def usage(self) -> GuestUsage:
        vmm, pmap = self.vmm, self.vmm.pmap
        states, cost = census(pmap.state, pmap.frame, vmm.machine.references)
        return GuestUsage(
            private=states[PageState.PRIVATE],
            shared=states[PageState.SHARED],
            shared_cost=cost,
            unmapped=states[PageState.UNMAPPED],
            compressed=states[PageState.COMPRESSED],
            swapped=states[PageState.SWAPPED],
            compressed_frames=0 if vmm.compressed is None else vmm.compressed.frames,
            table_frames=vmm.page_tables.table_frames,
            reserve_frames=vmm.reserve.count,
            large=LARGE_PAGES * int(np.count_nonzero(pmap.large)),
            zips_total=vmm.counts["zips"],
            unzips_total=vmm.counts["unzips"],
            swap_reads_total=vmm.counts["swap_reads"],
            swap_writes_total=vmm.counts["swap_writes"],
        )

    def begin_sample(self, ppns: Ppns) -> None:
        self.vmm.begin_sample(ppns)

    def untouched(self, ppns: Ppns) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return self.vmm.untouched(ppns)

    def watch(self, ppns: Ppns) -> None:
        self.vmm.watch(ppns)

    def idle(self, ppns: Ppns) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return self.vmm.idle(ppns)

    def private(self, ppns: Ppns) -> Ppns:
        return ppns[self.vmm.pmap.state[ppns] == PageState.PRIVATE]

    def reclaimable_pages(self) -> Ppns:
        pmap = self.vmm.pmap
        alone = np.flatnonzero(pmap.state == PageState.SHARED)
        alone = alone[self.vmm.machine.references[pmap.frame[alone]] == 1]
        return np.concatenate((np.flatnonzero(pmap.state == PageState.PRIVATE), alone))

    def shared_pages(self) -> Ppns:
        return np.flatnonzero(self.vmm.pmap.state == PageState.SHARED)

    def hash_pages(self, ppns: Ppns) -> Hashes:
        return self.vmm.hash_pages(ppns)

    def make_shared(self, ppn: int) -> int:
        return self.vmm.make_shared(ppn)

    def may_share(self, mpns: Ppns) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return self.vmm.may_share(mpns)

    def share(self, ppns: Ppns, mpns: Ppns) -> Ppns:
        return self.vmm.share(ppns, mpns)

    def mapped_to(self, mpns: list[int]) -> int:
        pmap = self.vmm.pmap
        shared = pmap.frame[pmap.state == PageState.SHARED]
        return int(np.count_nonzero(np.isin(shared, mpns)))

    def in_large_page(self, ppns: Ppns) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return self.vmm.pmap.in_large_page(ppns)

    def make_large(self, most: int) -> int:
        if not self.vmm.page_tables.has_large_pages:
            return 0
        pmap = self.vmm.pmap
        runs = pmap.pages // LARGE_PAGES
        private = (pmap.state[: runs * LARGE_PAGES] == PageState.PRIVATE).reshape(-1, LARGE_PAGES)
        whole = np.flatnonzero(private.all(axis=1) & (pmap.large[:runs] == 0))
        for made, run in enumerate(whole[:most].tolist()):
            if not self.vmm.make_large(run * LARGE_PAGES):
                return made or -1
        return min(int(whole.size), most)

    def break_large(self, most: int) -> int:
        runs = np.flatnonzero(self.vmm.pmap.large)[:most]
        for run in runs.tolist():
            self.vmm.break_large(run * LARGE_PAGES)
        return int(runs.size)

    def unmap(self, ppns: Ppns) -> Eviction:
        return self.vmm.unmap(ppns)

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

    @property
    def reserve(self) -> int:
        return self.vmm.reserve.count

    def grant(self, frames: int) -> int:
        return self.vmm.reserve.grant(frames)

    def give_back(self, keep: int) -> int:
        return self.vmm.reserve.give_back(keep)
