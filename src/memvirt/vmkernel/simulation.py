# SPDX-License-Identifier: Apache-2.0
"""Policy studies without processors: VMs that are metadata only, thousands of them in one process.

A ``SimulatedGuest`` implements ``GuestMemory`` with a byte or two for each page. Its guest is a
working set: a part of its pages that it touches whenever it runs, and that can be changed at any
time. A part of its pages compresses, a part equals the same pages of other VMs. The VMkernel that
manages it is the real one, so allocation rounds of a host of a tebibyte can be measured, and
questions such as "how many of these VMs fit that host" answered, in seconds.

from memvirt.vmkernel.simulation import Simulation

simulation = Simulation(machine_pages=1 << 18, options=MemoryOptions())
for number in range(10):
    simulation.power_on(VmSettings(f"vm{number}", memory=1 << 16, shares=640), active=0.5)
simulation.run(seconds=60)
print(simulation.kernel.sample().host.state)
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from memvirt.address import MachinePageNumber, MpnArray, PhysicalPageNumber, PpnArray

from .admission import VmSettings
from .managed import Condition, ManagedVm
from .options import MemoryOptions
from .protocols import (
    Balloon,
    Eviction,
    Flags,
    Hashes,
    KeptPages,
    MemoryUsage,
    Place,
)
from .vmkernel import VmKernel

__all__ = ["NoFrames", "SimulatedGuest", "SimulatedMachine", "Simulation"]

_UNIQUE = 1 << 40  # above: hashes of pages that equal no other
_RESERVE_CAPACITY = 1024
_PARTS = 64  # times VMs may wait for frames in one step


class PageState(IntEnum):
    """Where a simulated page is."""

    UNMAPPED = 0
    PRIVATE = 1
    SHARED = 2
    COMPRESSED = 3
    SWAPPED = 4


class NoFrames(Exception):
    """The simulated machine has fewer frames free than are wanted."""


class SimulatedMachine:
    """Machine memory of ``frames`` frames, as a number. Raises NoFrames."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.used = 0
        self.references: dict[MachinePageNumber, int] = {}  # of shared frames
        self.salts: dict[MachinePageNumber, int] = {}

    @property
    def free_frames(self) -> int:
        return self.frames - self.used

    @property
    def pool(self) -> _Pool:
        return _Pool(self)

    def take(self, count: int) -> None:
        if count > self.free_frames:
            raise NoFrames(f"{count} frames wanted, {self.free_frames} free")
        self.used += count

    def put_back(self, count: int) -> None:
        self.used -= count


class _Pool:
    """Frames of a simulated machine out of use."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine

    def withdraw(self, count: int) -> int:
        self._machine.take(count)
        return count

    def put_back(self, withdrawn: object) -> None:
        assert isinstance(withdrawn, int)
        self._machine.put_back(withdrawn)


class SimulatedGuest:
    """A VM of ``pages`` pages that touches the first ``active`` part of them when it runs.

    ``compressible``: part of the pages that shrink to a half. ``common``: part of the pages whose
    content is that of the same page in every other VM.
    """

    trouble = ""
    large_pages = None
    zero_hash = 0  # no page is said to be zero

    def __init__(
        self,
        machine: SimulatedMachine,
        pages: int,
        *,
        vm_id: int,
        active: float,
        compressible: float = 0.0,
        common: float = 0.0,
        cache_max: int = 0,
        share_salt: int = 0,
        balloon: Balloon | None = None,
    ) -> None:
        self.machine = machine
        self.pages = pages
        self.vm_id = vm_id
        self.active = active
        self.share_salt = share_salt
        self.balloon = balloon
        self.reserve = 0
        self.faults = 0
        self.waited = 0  # steps in which it did not get all it wanted
        self._common = common
        self._compressible = int(compressible * 256)
        self._cache_max = cache_max
        self._state = np.zeros(pages, np.uint8)
        self._sampled = np.zeros(pages, np.bool_)
        self._watched = np.zeros(pages, np.bool_)
        self._frame = np.zeros(0, np.int64)  # of shared pages; made when the first is
        self._counts = np.zeros(len(PageState), np.int64)
        self._counts[PageState.UNMAPPED] = pages
        self._totals = dict.fromkeys(("zips", "unzips", "reads", "writes"), 0)

    # The guest ---------------------------------------------------------------------------------

    def step(self) -> bool:
        """Touch the working set; False if there were not frames enough for all of it."""
        working = round(self.pages * self.active)
        self._sampled[:working] = False
        self._watched[:working] = False
        state = self._state[:working]
        absent = (state != PageState.PRIVATE) & (state != PageState.SHARED)
        missing = PpnArray(np.flatnonzero(absent))
        wanted = int(missing.size)
        missing = missing[: self.reserve]
        self._bring_back(missing)
        self.reserve -= int(missing.size)
        self.faults += int(missing.size)
        return wanted == missing.size

    def _bring_back(self, ppns: PpnArray) -> None:
        """Make pages private, wherever they were; their frames are taken already."""
        before = self._counts[[PageState.COMPRESSED, PageState.SWAPPED]].copy()
        self._set(ppns, PageState.PRIVATE)
        after = self._counts[[PageState.COMPRESSED, PageState.SWAPPED]]
        self._totals["unzips"] += int(before[0] - after[0])
        self._totals["reads"] += int(before[1] - after[1])

    def populate(self, pages: int) -> None:
        """Give the first ``pages`` pages frames at once, without the VMkernel's asking.

        Raises NoFrames.
        """
        missing = PpnArray(np.flatnonzero(self._state[:pages] == PageState.UNMAPPED))
        self.machine.take(int(missing.size))
        self._set(missing, PageState.PRIVATE)

    def _set(self, ppns: PpnArray, state: PageState) -> None:
        """Move pages to ``state``, keeping the counts and the frames of the cache right."""
        frames = self._compressed_frames()
        self._counts -= np.bincount(self._state[ppns], minlength=len(PageState))
        self._state[ppns] = state
        self._counts[state] += len(ppns)
        self.machine.used += self._compressed_frames() - frames

    def _compressed_frames(self) -> int:
        return -(-int(self._counts[PageState.COMPRESSED]) // 2)

    # GuestMemory, with all but large pages -------------------------------------------------------

    @property
    def sampling(self) -> SimulatedGuest:
        return self

    @property
    def reclaim(self) -> SimulatedGuest:
        return self

    @property
    def sharing(self) -> SimulatedGuest:
        return self

    @property
    def frames(self) -> SimulatedGuest:
        return self

    def usage(self) -> MemoryUsage:
        counts = self._counts
        cost = 0.0
        if counts[PageState.SHARED]:
            frames, pages = np.unique(
                self._frame[self._state == PageState.SHARED], return_counts=True
            )
            references = [self.machine.references[mpn] for mpn in frames.tolist()]
            cost = float((pages / np.array(references)).sum())
        totals = self._totals
        compressed = KeptPages(
            int(counts[PageState.COMPRESSED]),
            self._compressed_frames(),
            totals["zips"],
            totals["unzips"],
        )
        swapped = KeptPages(int(counts[PageState.SWAPPED]), 0, totals["writes"], totals["reads"])
        return MemoryUsage(
            private=int(counts[PageState.PRIVATE]),
            shared=int(counts[PageState.SHARED]),
            shared_cost=cost,
            unmapped=int(counts[PageState.UNMAPPED]),
            kept={"compress": compressed, "swap": swapped},
            reserve_frames=self.reserve,
        )

    def begin_sample(self, ppns: PpnArray) -> None:
        self._sampled[ppns] = True

    def untouched(self, ppns: PpnArray) -> Flags:
        return self._sampled[ppns]

    def watch(self, ppns: PpnArray) -> None:
        self._watched[ppns] = True

    def idle(self, ppns: PpnArray) -> Flags:
        return self._watched[ppns]

    def private(self, ppns: PpnArray) -> PpnArray:
        return ppns[self._state[ppns] == PageState.PRIVATE]

    def reclaimable_pages(self) -> PpnArray:
        return PpnArray(np.flatnonzero(self._state == PageState.PRIVATE))

    def shared_pages(self) -> PpnArray:
        return PpnArray(np.flatnonzero(self._state == PageState.SHARED))

    def evict(self, ppns: PpnArray, places: Sequence[Place]) -> Eviction:
        names = [place.name for place in places]
        resident = PpnArray(np.unique(self.private(PpnArray(np.asarray(ppns, np.int64)))))
        small = (resident * 0x9E3779B1 >> 7) % 256 < self._compressible
        room = max(2 * (self._cache_max - self._compressed_frames()), 0)
        squeezed = resident[small][: room if "compress" in names else 0]
        swapped = PpnArray(np.setdiff1d(resident, squeezed, assume_unique=True))
        refused = 0
        if "swap" not in names:
            swapped, refused = swapped[:0], int(swapped.size)
        self.machine.put_back(int(squeezed.size + swapped.size))
        self._set(squeezed, PageState.COMPRESSED)
        self._set(swapped, PageState.SWAPPED)
        self._totals["zips"] += int(squeezed.size)
        self._totals["writes"] += int(swapped.size)
        return Eviction({"compress": int(squeezed.size), "swap": int(swapped.size)}, refused)

    def restore(self, most: int) -> int:
        kept = PpnArray(np.flatnonzero(self._state >= PageState.COMPRESSED)[:most])
        self.machine.take(int(kept.size))
        self._bring_back(kept)
        return int(kept.size)

    def hash_pages(self, ppns: PpnArray) -> Hashes:
        common = (ppns * 0x85EBCA77 >> 9) % 1000 < self._common * 1000
        unique = _UNIQUE + (self.vm_id << 40) + ppns
        return np.where(common, ppns + 1, unique).astype(np.uint64)

    def make_shared(self, ppn: PhysicalPageNumber) -> MachinePageNumber:
        if self._frame.size == 0:
            self._frame = np.zeros(self.pages, np.int64)
        mpn = MachinePageNumber((self.vm_id << 32) | ppn)
        self.machine.references[mpn] = 1
        self.machine.salts[mpn] = self.share_salt
        self._frame[ppn] = mpn
        self._set(PpnArray(np.array([ppn])), PageState.SHARED)
        return mpn

    def may_share(self, mpns: MpnArray) -> Flags:
        salts = self.machine.salts
        return np.array([salts.get(mpn) == self.share_salt for mpn in mpns.tolist()], np.bool_)

    def share(self, ppns: PpnArray, mpns: MpnArray) -> PpnArray:
        if self._frame.size == 0:
            self._frame = np.zeros(self.pages, np.int64)
        fit = self._state[ppns] == PageState.PRIVATE
        pages, frames = ppns[fit], mpns[fit]
        for mpn, times in zip(*np.unique(frames, return_counts=True), strict=True):
            self.machine.references[MachinePageNumber(int(mpn))] += int(times)
        self._frame[pages] = frames
        self._set(pages, PageState.SHARED)
        self.machine.put_back(int(pages.size))
        return pages

    def mapped_to(self, mpns: Sequence[MachinePageNumber]) -> int:
        return 0  # no page is said to be zero

    def settle(self) -> None:
        pass

    def submit_writes(self) -> None:
        pass

    def grant(self, frames: int) -> int:
        frames = min(frames, _RESERVE_CAPACITY - self.reserve)
        self.machine.take(frames)
        self.reserve += frames
        return frames

    def give_back(self, keep: int) -> int:
        surplus = max(self.reserve - keep, 0)
        self.machine.put_back(surplus)
        self.reserve -= surplus
        return surplus


class Simulation:
    """A host of ``machine_pages`` frames under the real VMkernel, with simulated guests."""

    def __init__(self, machine_pages: int, options: MemoryOptions, *, seed: int = 1) -> None:
        self.machine = SimulatedMachine(machine_pages)
        self.kernel = VmKernel(self.machine, options, seed=seed)
        self.guests: list[SimulatedGuest] = []
        self._managed: list[ManagedVm] = []

    def power_on(
        self,
        settings: VmSettings,
        *,
        active: float,
        compressible: float = 0.0,
        common: float = 0.0,
        overhead: int = 0,
    ) -> SimulatedGuest:
        """Start a VM. Raises AdmissionError."""
        self.kernel.admission.admit(settings, overhead)
        self.kernel.make_room(_RESERVE_CAPACITY, settings.name)
        vm_id = len(self.guests) + 1
        guest = SimulatedGuest(
            self.machine,
            settings.memory,
            vm_id=vm_id,
            active=active,
            compressible=compressible,
            common=common,
            cache_max=self.kernel.cache_max(settings),
            share_salt=self.kernel.salt(vm_id, settings.group),
        )
        self.guests.append(guest)
        self._managed.append(self.kernel.power_on(guest, settings, overhead))
        return guest

    def step(self, seconds: float) -> None:
        """All guests touch their working sets, then the VMkernel does ``seconds`` of its work."""
        unsatisfied = self._touch(self._managed)
        for _ in range(_PARTS):
            if not unsatisfied:
                break
            for vm in unsatisfied:
                vm.waiting = True
            self.kernel.balance(0)
            unsatisfied = self._touch(unsatisfied)
        for vm in unsatisfied:
            self._guest(vm).waited += 1
        self.kernel.balance(int(seconds * 1e9))

    def _touch(self, vms: list[ManagedVm]) -> list[ManagedVm]:
        """Let VMs run; those that need more frames."""
        left = []
        for vm in vms:
            vm.waiting = False
            if vm.condition is Condition.RUNNING and not self._guest(vm).step():
                left.append(vm)
        return left

    def _guest(self, vm: ManagedVm) -> SimulatedGuest:
        assert isinstance(vm.guest, SimulatedGuest)
        return vm.guest

    def run(self, seconds: float, step: float = 1.0) -> None:
        """Steps of ``step`` seconds until ``seconds`` have passed."""
        for _ in range(round(seconds / step)):
            self.step(step)
