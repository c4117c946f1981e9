# SPDX-License-Identifier: Apache-2.0
"""VMs whose memory another kernel manages, as QEMU's is by Linux: no frames, no sharing of ours.

They answer the least a VM can answer (``GuestMemory``), with a balloon, sampling and reclaim where
a test gives them. The kernel gives a page to whoever touches it, as long as it has any.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memvirt.address import PpnArray
from memvirt.vmkernel.managed import Condition, ManagedVm
from memvirt.vmkernel.options import MemoryOptions
from memvirt.vmkernel.protocols import (
    Eviction,
    Flags,
    KeptPages,
    MemoryUsage,
    Place,
)
from memvirt.vmkernel.vmkernel import VmKernel

FAULTS = 200  # pages a VM can touch anew in one round


class Kernel:
    """The host's kernel: ``frames`` pages for all processes."""

    pool = None

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.others = 0  # what other processes use
        self.vms: list[BareVm] = []

    @property
    def free_frames(self) -> int:
        return self.frames - self.others - sum(int(vm.resident.sum()) for vm in self.vms)


class Balloon:
    """A driver that gives up pages outside the working set."""

    def __init__(self, connected: bool = True) -> None:
        self.target = 0
        self.connected = connected
        self.size = 0


class Levers:
    """Sampling and reclaim of one VM by its kernel."""

    def __init__(self, vm: BareVm) -> None:
        self.vm = vm

    def begin_sample(self, ppns: PpnArray) -> None:
        self.vm.sampled[ppns] = True

    def untouched(self, ppns: PpnArray) -> Flags:
        return self.vm.sampled[ppns]

    def watch(self, ppns: PpnArray) -> None:
        self.vm.watched[ppns] = True

    def idle(self, ppns: PpnArray) -> Flags:
        return self.vm.watched[ppns]

    def reclaimable_pages(self) -> PpnArray:
        return np.flatnonzero(self.vm.resident)

    def reclaimable(self, ppns: PpnArray) -> Flags:
        return self.vm.resident[ppns]

    def shared_pages(self) -> PpnArray:
        return np.zeros(0, np.int64)

    def evict(self, ppns: PpnArray, places: Sequence[Place]) -> Eviction:
        """The kernel swaps, whatever else the VMkernel would like to try."""
        if all(place.name != "swap" for place in places):
            return Eviction(refused=ppns.size)
        self.vm.resident[ppns] = False
        self.vm.swapped[ppns] = True
        self.vm.swapped_out += int(ppns.size)
        return Eviction({"swap": int(ppns.size)})

    def restore(self, most: int) -> int:
        pages = np.flatnonzero(self.vm.swapped)[:most]
        self.vm.swapped[pages] = False
        self.vm.resident[pages] = True
        return int(pages.size)

    def submit_writes(self) -> None:
        pass


class BareVm:
    """A VM of ``pages`` pages that touches the first ``active`` part of them when it runs."""

    trouble = ""
    granule = 1
    sharing = frames = large_pages = None

    def __init__(
        self, kernel: Kernel, vm_id: int, pages: int, *, levers: bool, balloon: Balloon | None
    ) -> None:
        self.vm_id = vm_id
        self.pages = pages
        self.active = 1.0
        self.kernel = kernel
        self.balloon = balloon
        self.resident = np.zeros(pages, np.bool_)
        self.swapped = np.zeros(pages, np.bool_)
        self.sampled = np.zeros(pages, np.bool_)
        self.watched = np.zeros(pages, np.bool_)
        self.swapped_out = 0
        self.sampling = self.reclaim = Levers(self) if levers else None
        kernel.vms.append(self)

    def usage(self) -> MemoryUsage:
        resident, swapped = int(self.resident.sum()), int(self.swapped.sum())
        return MemoryUsage(
            private=resident,
            unmapped=self.pages - resident - swapped,
            kept={"swap": KeptPages(swapped, put_total=self.swapped_out)},
        )

    def settle(self) -> None:
        pass

    def run(self) -> None:
        """The guest runs: touches its working set, and follows its balloon's target."""
        working = int(self.pages * self.active)
        missing = np.flatnonzero(~self.resident[:working])
        missing = missing[: min(FAULTS, max(self.kernel.free_frames, 0))]
        self.resident[missing] = True
        self.swapped[missing] = False
        self.sampled[:working] &= ~self.resident[:working]
        self.watched[:working] &= ~self.resident[:working]
        if self.balloon is not None and self.balloon.connected:
            self.balloon.size = min(self.balloon.target, self.pages - working)
            given = np.arange(self.pages - self.balloon.size, self.pages)
            self.resident[given] = self.swapped[given] = False


class BareHost:
    """A host of such VMs under the real VMkernel."""

    def __init__(self, frames: int, **options: object) -> None:
        self.machine = Kernel(frames)
        knobs = {"SamplePeriod": 2, "BalancePeriod": 2, **options}
        self.kernel = VmKernel(self.machine, MemoryOptions(**knobs))  # type: ignore[arg-type]

    def run(self, rounds: int) -> None:
        """Rounds of a second."""
        for _ in range(rounds):
            for managed in self.kernel.vms:
                if managed.condition is Condition.RUNNING and not managed.held:
                    assert isinstance(managed.guest, BareVm)
                    managed.guest.run()
            self.kernel.balance(1_000_000_000)

    def managed(self, name: str) -> ManagedVm:
        return next(vm for vm in self.kernel.vms if vm.name == name)
