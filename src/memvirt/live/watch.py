# SPDX-License-Identifier: Apache-2.0
"""Watching this host's live VMs: a sample whenever one is asked for. Changes nothing.

What costs little (QMP, ``/proc/PID/status``) is read for every sample; the monitor is let go at
once, since QEMU serves one client at a time. The look at all pages is repeated only as often as
keeps it below a share of one processor, so big VMs are looked at less often; the sample says how
old it is.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from .answers import balloon_bytes, run_state, understood
from .discovery import DiscoveredVm, discover
from .errors import CommandError, LiveError, MonitorError, ProcessGone
from .host_memory import read_host_pages
from .ksm import ksm_status
from .live_sample import LiveHostMemory, LiveSample, LiveVmMemory
from .page_states import LivePageState, PageStateCounts, has_pager
from .process import Process
from .vm import LiveVm, open_kernel_pages
from .working_set import SampledVm, WorkingSets, uses_kvm
from .working_set_way import DEFAULT_PERIOD_SECONDS, WorkingSetWay

_DISCOVER_SECONDS = 5.0
_RETRY_SECONDS = 10.0  # after a VM could not be opened or asked
DEFAULT_SCAN_SHARE = 0.01  # of one processor, for looking at all pages


@dataclass
class _Watched:
    """What is kept of one VM between samples."""

    discovered: DiscoveredVm
    vm: LiveVm | None = None
    problem: str = ""
    retry_at: float = 0.0
    counts: PageStateCounts | None = None
    resident: int | None = None  # pages with a frame that QEMU has mapped
    counted_at: float = 0.0
    next_count_at: float = 0.0
    kvm: bool | None = None
    paged: bool = False
    balloon: int | None = None
    balloon_driver: bool | None = None
    condition: str = "unknown"
    ask_problem: str = ""
    ask_at: float = 0.0  # not before: a monitor that hangs costs two seconds each time
    notes: list[str] = field(default_factory=list)


class LiveHost:
    """The live VMs of this host. Use as a context manager, or ``close`` it.

    ``wanted`` chooses VMs; without it all are watched, also those that start later.
    """

    def __init__(
        self,
        *,
        wanted: Callable[[DiscoveredVm], bool] = lambda vm: True,
        way: WorkingSetWay = WorkingSetWay.AUTO,
        period: float = DEFAULT_PERIOD_SECONDS,
        scan_share: float = DEFAULT_SCAN_SHARE,
    ) -> None:
        self._wanted = wanted
        self._scan_share = scan_share
        self._vms: dict[int, _Watched] = {}
        self._lock = threading.Lock()
        self._discovered_at = float("-inf")
        self._started = time.monotonic()
        self._scan_seconds = 0.0
        self._cost_before = (time.monotonic(), time.process_time())
        self._cost_percent = 0.0
        self.kernel, self.kernel_problem = open_kernel_pages()
        self._working_sets = WorkingSets(
            self._sampled_vms, way=way, period=period, kernel=self.kernel
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop measuring and release everything; may be called again."""
        self._working_sets.close()
        for watched in self._vms.values():
            if watched.vm is not None:
                watched.vm.close()
        self._vms = {}
        if self.kernel is not None:
            self.kernel.close()

    def _sampled_vms(self) -> list[SampledVm]:
        """The VMs that can be looked into now, for another thread; it closes them."""
        found = []
        with self._lock:
            for watched in self._vms.values():
                if watched.vm is not None:
                    with contextlib.suppress(LiveError):  # gone, or not to be looked into
                        found.append(SampledVm(watched.vm))
        return found

    def _discover(self) -> None:
        now = time.monotonic()
        if now - self._discovered_at < _DISCOVER_SECONDS:
            return
        self._discovered_at = now
        found = {vm.pid: vm for vm in discover() if self._wanted(vm)}
        with self._lock:
            for pid in [pid for pid in self._vms if pid not in found]:
                self._drop(pid)
            for pid, vm in found.items():
                self._vms.setdefault(pid, _Watched(vm))

    def _drop(self, pid: int) -> None:
        watched = self._vms.pop(pid)
        if watched.vm is not None:
            self._working_sets.forget(watched.vm.name)
            watched.vm.close()

    def sample(self) -> LiveSample:
        """Look at the host and all VMs now."""
        self._discover()
        vms = []
        for pid in sorted(self._vms):
            watched = self._vms[pid]
            try:
                vms.append(self._sample_vm(watched))
            except ProcessGone:
                with self._lock:
                    self._drop(pid)
        return LiveSample(self._host(vms), tuple(vms))

    def _open(self, watched: _Watched) -> LiveVm | None:
        if watched.vm is None and time.monotonic() >= watched.retry_at:
            try:
                vm = LiveVm(watched.discovered)
            except ProcessGone:
                raise
            except LiveError as error:
                watched.problem = str(error)
                watched.retry_at = time.monotonic() + _RETRY_SECONDS
            else:
                watched.problem = ""
                watched.kvm = uses_kvm(vm.process)
                with self._lock:
                    watched.vm = vm
        return watched.vm

    def _ask(self, watched: _Watched, vm: LiveVm) -> None:
        """Run state, balloon and size, by QMP; what cannot be asked becomes unknown."""
        watched.condition, watched.balloon, watched.balloon_driver = "unknown", None, None
        if time.monotonic() < watched.ask_at:
            watched.notes.append(watched.ask_problem)
            return
        try:
            with understood(vm.name):
                self._take_answers(watched, vm)
        except MonitorError as error:
            watched.ask_problem = str(error)
            watched.ask_at = time.monotonic() + _RETRY_SECONDS
            watched.notes.append(watched.ask_problem)
        finally:
            vm.release_monitor()

    @staticmethod
    def _take_answers(watched: _Watched, vm: LiveVm) -> None:
        monitor = vm.ask()
        watched.condition = run_state(monitor)
        size = monitor.execute("query-memory-size-summary")
        total = int(size["base-memory"]) + int(size.get("plugged-memory", 0))
        if total >> 12 != vm.layout.pages:
            vm.refresh_layout()
            watched.counts = None
        try:
            actual = balloon_bytes(monitor)
            watched.balloon_driver = True
            watched.balloon = max(total - actual, 0) >> 12
        except CommandError as error:
            if error.error_class != "DeviceNotActive":
                raise
            watched.balloon_driver, watched.balloon = False, 0

    def _count(self, watched: _Watched, vm: LiveVm) -> None:
        now = time.monotonic()
        if watched.counts is not None and now < watched.next_count_at:
            return
        before = time.thread_time()
        states = vm.page_states(self.kernel)
        watched.counts = states.counts()
        watched.resident = states.where(
            LivePageState.PRIVATE, LivePageState.SHARED, LivePageState.UNKNOWN
        ).size
        watched.counted_at = now
        cost = time.thread_time() - before
        self._scan_seconds = cost
        watched.paged = any(has_pager(vm.process, block) for block in vm.layout.blocks)
        watched.next_count_at = now + cost / self._scan_share * max(len(self._vms), 1)

    def _sample_vm(self, watched: _Watched) -> LiveVmMemory:
        watched.notes = []
        vm = self._open(watched)
        if vm is None:
            return _unreachable(watched)
        vm.process.require_alive()
        self._ask(watched, vm)
        try:
            self._count(watched, vm)
        except ProcessGone:
            raise
        except LiveError as error:
            watched.counts = None
            watched.notes.append(str(error))
        if watched.paged:
            watched.notes.append("its memory has a pager (userfaultfd): UNTCHD has what that keeps")
        counts = watched.counts or PageStateCounts(*[None] * 9)
        if self.kernel is None:
            watched.notes.append(self.kernel_problem)
        activity = self._working_sets.activity(vm.name)
        if activity.estimate is None and (error_text := self._working_sets.error(vm.name)):
            watched.notes.append(f"working set: {error_text}")
        pages = vm.layout.pages
        return LiveVmMemory(
            vm_id=vm.pid,
            name=vm.name,
            condition=watched.condition,
            reason="; ".join(watched.notes),
            backing="+".join(dict.fromkeys(block.backing.value for block in vm.layout.blocks)),
            kvm=watched.kvm,
            memory=pages,
            granted=counts.granted,
            consumed=counts.consumed,
            untouched=counts.untouched,
            active_percent=_percent(activity.estimate),
            active_slow_percent=_percent(activity.slow),
            active_fast_percent=_percent(activity.fast),
            touched=None if activity.estimate is None else round(activity.estimate * pages),
            balloon_driver=watched.balloon_driver,
            balloon=watched.balloon,
            swapped=counts.swapped,
            major_faults_total=_major_faults(vm.process),
            shared=counts.shared,
            zero=counts.zero,
            shared_saved=counts.shared_saved,
            large=counts.huge,
            overhead=_overhead(vm, watched.resident),
            age_seconds=None if watched.counts is None else time.monotonic() - watched.counted_at,
        )

    def _host(self, vms: Sequence[LiveVmMemory]) -> LiveHostMemory:
        pages, ksm = read_host_pages(), ksm_status()
        now, spent = time.monotonic(), time.process_time() + self._working_sets.cpu_seconds()
        if now - self._cost_before[0] >= 1:
            seconds, cost = now - self._cost_before[0], spent - self._cost_before[1]
            self._cost_percent = max(100 * cost / seconds, 0.0)
            self._cost_before = (now, spent)
        balloons = [vm.balloon for vm in vms]
        known = [balloon for balloon in balloons if balloon is not None]
        return LiveHostMemory(
            time_ns=int((now - self._started) * 1e9),
            total=pages.total,
            free=pages.free,
            available=pages.available,
            swap_total=pages.swap_total,
            swap_used=pages.swap_used,
            swap_reads_total=pages.swap_reads_total,
            swap_writes_total=pages.swap_writes_total,
            ksm_running=None if ksm is None else ksm.running,
            ksm_shared=None if ksm is None else ksm.frames + ksm.sharing,
            ksm_frames=None if ksm is None else ksm.frames,
            balloon=sum(known) if len(known) == len(balloons) else None,
            cost_percent=self._cost_percent,
            scan_seconds=self._scan_seconds,
            working_set=self._working_sets.way,
            working_set_problem=self._working_sets.problem,
        )


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _status_pages(process: Process) -> dict[str, int]:
    """Sizes of ``/proc/PID/status`` in pages."""
    found = {}
    for line in process.read("status").decode("utf-8", "replace").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) // 4
    return found


def _overhead(vm: LiveVm, resident: int | None) -> int | None:
    """QEMU's own memory: what it has resident besides the guest's RAM, and its page tables."""
    if resident is None:
        return None
    pages = _status_pages(vm.process)
    if "VmRSS" not in pages:
        return None
    return max(pages["VmRSS"] - resident, 0) + pages.get("VmPTE", 0)


def _major_faults(process: Process) -> int | None:
    try:
        return int(process.read("stat").rpartition(b")")[2].split()[9])
    except (OSError, IndexError, ValueError):
        return None


def _unreachable(watched: _Watched) -> LiveVmMemory:
    unknown = dict.fromkeys(
        (
            "backing", "kvm", "memory", "granted", "consumed", "untouched", "active_percent",
            "active_slow_percent", "active_fast_percent", "touched", "balloon_driver", "balloon",
            "swapped", "major_faults_total", "shared", "zero", "shared_saved", "large", "overhead",
            "age_seconds",
        )
    )  # fmt: skip
    vm = watched.discovered
    return LiveVmMemory(
        vm_id=vm.pid,
        name=vm.name,
        condition="unreachable",
        reason=watched.problem,
        **unknown,
    )
