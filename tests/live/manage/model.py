# SPDX-License-Identifier: Apache-2.0
"""VMs that are arrays: what the manager asks of a live VM, of its process and its monitor.

The same figures can be given to two managers, which no real VM can do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memvirt.address import HostVirtualAddress
from memvirt.live.command_line import parse_command_line
from memvirt.live.discovery import DiscoveredVm
from memvirt.live.errors import CommandError, MonitorError
from memvirt.live.host_memory import HostPages
from memvirt.live.manage import eviction, manager, restore
from memvirt.live.manage.sampling import VmSampling
from memvirt.live.page_states import LivePageState, PageStates
from memvirt.live.ram import Backing, RamBlock, RamLayout
from memvirt.live.working_set import WatchedPages

_UNTOUCHED, _PRIVATE, _SWAPPED = (
    LivePageState.UNTOUCHED, LivePageState.PRIVATE, LivePageState.SWAPPED,
)  # fmt: skip


@dataclass
class ModelVm:
    """A VM of ``pages`` pages that are numbered as its addresses are. It is its own monitor.

    ``gives``: the most pages its guest gives to a balloon; None for no driver. It obeys at once.
    ``active``: the part of its memory, from the first page on, that it touches.
    """

    name: str
    pid: int
    pages: int
    gives: int | None = 1 << 30
    active: float = 1.0
    overhead: int = 5000
    monitor_answers: bool = True
    told: list[int] = field(default_factory=list)  # every balloon target, in pages of memory left
    stopped: bool = False
    run_state: str = ""  # what QEMU says, if it is neither of those two
    migration: str = ""  # status of query-migrate
    plugged: int = 0  # pages of RAM plugged in since

    def __post_init__(self) -> None:
        self.unanswered: set[str] = set()  # commands that QEMU does not answer now
        self.state = np.full(self.pages, _UNTOUCHED, np.uint8)
        self.ballooned = np.zeros(self.pages, np.bool_)
        self.kept = np.zeros(self.pages, np.bool_)  # pages that advice does not move
        block = RamBlock(
            "ram", HostVirtualAddress(0), self.pages << 12, 0, Backing.ANONYMOUS, False, True,
            "00:00", 0, 0, "",
        )  # fmt: skip
        self.layout = RamLayout((block,), ())
        self.process = SimpleNamespace(
            pid=self.pid,
            require_alive=lambda: None,
            start_time=lambda: 1,
            read=lambda name: b"0 %d 0" % self.resident if name == "statm" else b"",
        )
        self.discovered = DiscoveredVm(
            self.pid, self.name, "qemu-system-x86_64", "", parse_command_line(["qemu"]), (), "", ""
        )

    @property
    def resident(self) -> int:
        """Pages of its process."""
        return self.count(_PRIVATE) + self.overhead

    def count(self, state: LivePageState) -> int:
        """Pages in a state."""
        return int(np.count_nonzero(self.state == state))

    def touch(self, first: int, end: int) -> None:
        """The guest touches pages: those in swap come back, those in the balloon are not its."""
        pages = np.arange(first, end)
        self.state[pages[~self.ballooned[pages]]] = _PRIVATE

    def page_states(self, kernel: object) -> PageStates:
        none = np.zeros(0, np.uint64)
        mpn = np.zeros(self.pages, np.uint64)
        return PageStates(self.state.copy(), mpn, None, none, True)

    def ask(self) -> ModelVm:
        return self

    def __enter__(self) -> ModelVm:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def release_monitor(self) -> None: ...

    def close(self) -> None: ...

    def execute(self, command: str, arguments: Any = None) -> Any:
        if command in self.unanswered:
            raise MonitorError(f"{self.name}: {command}: no answer within 5 s")
        if command == "query-status":
            return {"status": self.run_state or ("paused" if self.stopped else "running")}
        if command == "query-migrate":
            return {"status": self.migration} if self.migration else {}
        if command == "query-memory-size-summary":
            return {"base-memory": self.pages << 12, "plugged-memory": self.plugged << 12}
        if command in ("stop", "cont"):
            self.stopped = command == "stop"
            return {}
        if self.gives is None:
            raise CommandError(f"{self.name}: no balloon", "DeviceNotActive")
        if command == "balloon":
            self.told.append(arguments["value"] >> 12)
            self._balloon(self.pages - self.told[-1])
            return {}
        assert command == "query-balloon"
        return {"actual": (self.pages - np.count_nonzero(self.ballooned)) << 12}

    def _balloon(self, target: int) -> None:
        """The guest gives its last pages that have a frame, and uses at once what it gets back."""
        assert self.gives is not None
        target = min(target, self.gives)
        size = int(np.count_nonzero(self.ballooned))
        if target > size:
            taken = np.flatnonzero(self.state == _PRIVATE)[size - target :]
            self.state[taken], self.ballooned[taken] = _UNTOUCHED, True
        elif target < size:
            back = np.flatnonzero(self.ballooned)[: size - target]
            self.state[back], self.ballooned[back] = _PRIVATE, False


class ModelAdviser:
    """The kernel's advice on one of the VMs."""

    def __init__(self, vm: ModelVm) -> None:
        self.vm = vm

    def advise(self, runs: Any, advice: int) -> None:
        for first, size in runs:
            pages = slice(first >> 12, (first + size) >> 12)
            part = self.vm.state[pages]
            part[(part == _PRIVATE) & ~self.vm.kept[pages]] = _SWAPPED

    def __enter__(self) -> ModelAdviser:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def close(self) -> None: ...


class ModelSampler:
    """Of each sample, the VM's active part is touched: with whichever pages were drawn."""

    def __init__(self, *anything: object) -> None:
        self.samplings: list[VmSampling] = []

    def add(self, vm: Any) -> VmSampling:
        self.samplings.append(VmSampling(vm))
        return self.samplings[-1]

    def remove(self, vm: Any) -> None:
        self.samplings = [sampling for sampling in self.samplings if sampling.vm is not vm]

    def begin(self) -> None:
        for sampling in self.samplings:
            if sampling.drawn is not None:
                pages, sampling.drawn = sampling.drawn, None
                vm: Any = sampling.vm
                touched = np.arange(pages.size) < round(vm.active * pages.size)
                known = np.ones(pages.size, np.bool_)
                sampling.ended(pages, WatchedPages(vm.name, known, touched))

    def close(self) -> None: ...


class ModelHost:
    """This host, with these VMs only, and as much of everything as is wanted."""

    def __init__(self, vms: list[ModelVm], total: int = 1 << 22, swap: int = 1 << 22) -> None:
        self.vms = {vm.pid: vm for vm in vms}
        self.total, self.swap, self.seconds = total, swap, 0.0

    def pages(self) -> HostPages:
        used = sum(vm.count(_SWAPPED) for vm in self.vms.values())
        return HostPages(self.total, self.total, self.total, self.swap, used, None, None)

    def sources(self) -> dict[str, Any]:
        """Where a Manager has its figures from."""
        return {
            "clock": lambda: self.seconds,
            "found": lambda: [vm.discovered for vm in self.vms.values()],
            "opened": lambda found: self.vms[found.pid],
            "host_pages": self.pages,
            "watcher": SimpleNamespace(),
        }

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The kernel's part of managing is this host's."""

        def bring_back(adviser: ModelAdviser, layout: object, indices: Any) -> None:
            adviser.vm.state[indices] = _PRIVATE

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(manager, "open_kernel_pages", lambda: (SimpleNamespace(close=int), ""))
            patch.setattr(manager, "open_sampler", lambda *anything: ModelSampler())
            for module in (eviction, restore):
                patch.setattr(module, "Adviser", lambda of: ModelAdviser(self.vms[of.pid]))
                patch.setattr(module, "bring_back", bring_back)
            patch.setattr(restore, "start_time", lambda pid: 1)
            patch.setattr(restore, "open_kernel_pages", lambda: (None, ""))
            patch.setattr(restore, "read_host_pages", self.pages)
            patch.setattr(restore, "discover", lambda pids: [self.vms[pids[0]].discovered])
            patch.setattr(restore, "LiveVm", lambda found: self.vms[found.pid])
            yield
