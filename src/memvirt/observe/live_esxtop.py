# SPDX-License-Identifier: Apache-2.0
"""Samples of live VMs in the terms of esxtop. Rates are over the host's time.

A figure that cannot be had is None in a column, and "unknown" on the screen. docs/live.md says
where each comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memvirt.live.live_sample import LiveSample, LiveVmMemory

from .esxtop import choose_names, mebibytes

UNKNOWN = "unknown"
Value = str | float | None


@dataclass(frozen=True, slots=True)
class LiveInterval:
    """A sample, and the one it is compared with to get rates."""

    now: LiveSample
    before: LiveSample | None = None

    @property
    def seconds(self) -> float:
        """Seconds between the two; 0 if there is only one."""
        if self.before is None:
            return 0.0
        return (self.now.host.time_ns - self.before.host.time_ns) / 1e9

    def rate(self, total: int | None, before: int | None) -> float | None:
        """A second, of two counts; None if one is unknown, or there is nothing to compare with."""
        if total is None or before is None or self.seconds <= 0:
            return None
        return (total - before) / self.seconds

    def faults(self, vm: LiveVmMemory) -> float | None:
        """Major faults a second of a VM's process."""
        earlier = None
        if self.before is not None:
            earlier = next((item for item in self.before.vms if item.vm_id == vm.vm_id), None)
        before = None if earlier is None else earlier.major_faults_total
        return self.rate(vm.major_faults_total, before)


@dataclass(frozen=True, slots=True)
class LiveColumn:
    """A column of the table of live VMs; None is unknown."""

    name: str
    meaning: str
    value: Callable[[LiveInterval, LiveVmMemory], Value]
    counter: str = ""  # its name in batch mode, if it has one
    decimals: int = 1


def _pages(field: str) -> Callable[[LiveInterval, LiveVmMemory], Value]:
    def value(interval: LiveInterval, vm: LiveVmMemory) -> Value:
        pages = getattr(vm, field)
        return None if pages is None else mebibytes(pages)

    return value


def _plain(field: str) -> Callable[[LiveInterval, LiveVmMemory], Value]:
    def value(interval: LiveInterval, vm: LiveVmMemory) -> Value:
        number = getattr(vm, field)
        return None if number is None else float(number)

    return value


def _flag(field: str, yes: str, no: str) -> Callable[[LiveInterval, LiveVmMemory], Value]:
    def value(interval: LiveInterval, vm: LiveVmMemory) -> Value:
        flag = getattr(vm, field)
        return None if flag is None else yes if flag else no

    return value


LIVE_COLUMNS = (
    LiveColumn("NAME", "the VM", lambda _, vm: vm.name),
    LiveColumn("PID", "process number of QEMU", lambda _, vm: str(vm.vm_id)),
    LiveColumn("STATE", "QEMU's run state, or unreachable", lambda _, vm: vm.condition),
    LiveColumn("ACCEL", "who runs guest code: kvm or tcg", _flag("kvm", "kvm", "tcg")),
    LiveColumn("BACKING", "kind of memory the guest's RAM is", lambda _, vm: vm.backing),
    LiveColumn("MEMSZ", "configured memory, plugged modules included", _pages("memory"),
               "Memory Size MBytes"),
    LiveColumn("GRANT", "guest pages with a frame, merged ones included", _pages("granted"),
               "Memory Granted Size MBytes"),
    LiveColumn("CNSM", "machine memory charged to it: a frame mapped n times counts 1/n",
               _pages("consumed"), "Memory Consumed Size MBytes"),
    LiveColumn("UNTCHD", "guest pages with nothing behind them", _pages("untouched"),
               "Untouched MBytes"),
    LiveColumn("TCHD", "working set: the active estimate of its memory", _pages("touched"),
               "Touched MBytes"),
    LiveColumn("%ACTV", "active memory: the larger of the next two", _plain("active_percent"),
               "% Active Estimate", 0),
    LiveColumn("%ACTVS", "slow moving average", _plain("active_slow_percent"),
               "% Active Slow Estimate", 0),
    LiveColumn("%ACTVF", "fast moving average", _plain("active_fast_percent"),
               "% Active Fast Estimate", 0),
    LiveColumn("MCTL?", "it has a balloon device", _flag("balloon_driver", "Y", "N")),
    LiveColumn("MCTLSZ", "memory in the balloon", _pages("balloon"), "Memctl MBytes"),
    LiveColumn("SWCUR", "guest memory in the host's swap", _pages("swapped"), "Swapped MBytes"),
    LiveColumn("MJFLT/s", "major faults a second: pages QEMU waited for",
               lambda interval, vm: interval.faults(vm), "Major Faults/sec"),
    LiveColumn("SHRD", "guest memory merged by KSM", _pages("shared"), "Shared MBytes"),
    LiveColumn("ZERO", "guest memory that is the host's page of zeroes", _pages("zero"),
               "Zero MBytes"),
    LiveColumn("SHRDSVD", "machine memory KSM saves", _pages("shared_saved"),
               "Shared Saved MBytes"),
    LiveColumn("LPG", "guest memory in large pages of the host", _pages("large"),
               "Large Page MBytes"),
    LiveColumn("OVHD", "memory of QEMU itself, page tables included", _pages("overhead"),
               "Overhead MBytes"),
    LiveColumn("AGE", "seconds since its pages were looked at", _plain("age_seconds")),
)  # fmt: skip
LIVE_BY_NAME = {column.name: column for column in LIVE_COLUMNS}

LIVE_PRIORITY = (
    "NAME", "STATE", "MEMSZ", "GRANT", "TCHD", "SHRD", "SWCUR", "MCTLSZ", "OVHD", "SHRDSVD", "ZERO",
    "LPG", "%ACTV", "CNSM", "UNTCHD", "MCTL?", "ACCEL", "BACKING", "MJFLT/s", "PID", "AGE",
    "%ACTVS", "%ACTVF",
)  # fmt: skip
LIVE_TEXT_COLUMNS = {"NAME", "STATE", "ACCEL", "BACKING", "MCTL?"}


def choose_live_columns(width: int, name_width: int) -> list[LiveColumn]:
    """The columns that fit ``width`` characters, the most telling ones, in the usual order."""
    chosen = choose_names(width, name_width, LIVE_PRIORITY, least=8)
    return [column for column in LIVE_COLUMNS if column.name in chosen]


def live_cell(column: LiveColumn, interval: LiveInterval, vm: LiveVmMemory) -> str:
    """What a cell of the table shows."""
    value = column.value(interval, vm)
    if value is None:
        return UNKNOWN
    return value if isinstance(value, str) else f"{value:.{column.decimals}f}"


def _amount(pages: float | None) -> str:
    return UNKNOWN if pages is None else f"{mebibytes(pages):6.1f}"


def live_header_lines(interval: LiveInterval) -> list[str]:
    """The lines above the table: host memory, KSM, swap, balloons, and what watching costs."""
    host = interval.now.host
    before = None if interval.before is None else interval.before.host
    running = [vm for vm in interval.now.vms if vm.memory is not None]
    configured = sum(vm.memory or 0 for vm in running)

    def line(name: str, *parts: tuple[float | None, str]) -> str:
        return f"{name:<6}/MB:" + ", ".join(f"{_amount(pages)} {what}" for pages, what in parts)

    def rate(name: str) -> str:
        earlier = None if before is None else getattr(before, name)
        value = interval.rate(getattr(host, name), earlier)
        return UNKNOWN if value is None else f"{mebibytes(value):.2f}"

    saving = None
    if host.ksm_shared is not None and host.ksm_frames is not None:
        saving = host.ksm_shared - host.ksm_frames
    state = {None: "this kernel has none", True: "running", False: "off"}[host.ksm_running]
    way = host.working_set
    if host.working_set_problem:
        way += f" ({host.working_set_problem})"
    return [
        f"{host.time_ns / 1e9:.0f} s; {len(interval.now.vms)} VMs, {mebibytes(configured):.0f} MB "
        f"configured on {mebibytes(host.total):.0f} MB: {configured / host.total:.2f} x",
        line("PMEM", (host.total, "total"), (host.free, "free"), (host.available, "available")),
        line("KSM", (host.ksm_shared, "shared"), (host.ksm_frames, "common"), (saving, "saving"))
        + f", {state}",
        line("SWAP", (host.swap_total, "total"), (host.swap_used, "curr"))
        + f", {rate('swap_reads_total')} r/s, {rate('swap_writes_total')} w/s",
        line("MEMCTL", (host.balloon, "curr")),
        f"watching takes {host.cost_percent:.1f} % of a processor, the last look at all pages of a "
        f"VM {1e3 * host.scan_seconds:.1f} ms; working set: {way}",
    ]  # fmt: skip
