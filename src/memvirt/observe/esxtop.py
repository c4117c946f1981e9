# SPDX-License-Identifier: Apache-2.0
"""Samples in the terms of esxtop: its header lines, and its columns for each VM.

Everything here is a function of one sample and the one before it; rates are over virtual time.
docs/esxtop.md says what each column means. MB are MiB, as in esxtop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memvirt.address import PAGE_BYTES
from memvirt.vmkernel.samples import Sample, VmMemory

_MIB = 1 << 20


def mebibytes(pages: float) -> float:
    """MiB of a number of 4 KiB pages."""
    return pages * PAGE_BYTES / _MIB


@dataclass(frozen=True, slots=True)
class Interval:
    """A sample, and what it is compared with to get rates. The first sample has no rates."""

    now: Sample
    before: Sample | None = None

    @property
    def seconds(self) -> float:
        """Virtual seconds between the two; 0 if there is only one."""
        if self.before is None:
            return 0.0
        return (self.now.host.time_ns - self.before.host.time_ns) / 1e9

    def rate(self, total: int, before: int) -> float:
        """MiB a second, of two counts of pages."""
        return mebibytes(total - before) / self.seconds if self.seconds > 0 else 0.0

    def vm_before(self, vm_id: int) -> VmMemory | None:
        """The VM in the sample before, if it was there."""
        if self.before is None:
            return None
        return next((vm for vm in self.before.vms if vm.vm_id == vm_id), None)

    def vm_rate(self, vm: VmMemory, field: str) -> float:
        """MiB a second of a counter of a VM, such as ``swap_reads_total``."""
        before = self.vm_before(vm.vm_id)
        total = int(getattr(vm, field))
        return self.rate(total, 0 if before is None else int(getattr(before, field)))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of VMs. Text columns give text, the others a number."""

    name: str
    meaning: str
    value: Callable[[Interval, VmMemory], str | float]
    counter: str = ""  # its name in batch mode, if it has one
    decimals: int = 1


def _pages(field: str) -> Callable[[Interval, VmMemory], float]:
    return lambda interval, vm: mebibytes(getattr(vm, field))


def _percent(field: str) -> Callable[[Interval, VmMemory], float]:
    return lambda interval, vm: float(getattr(vm, field))


def _rate(field: str) -> Callable[[Interval, VmMemory], float]:
    return lambda interval, vm: interval.vm_rate(vm, field)


COLUMNS = (
    Column("NAME", "the VM", lambda _, vm: vm.name),
    Column(
        "STATE",
        "running, waiting, blocked, paused, throttled, off",
        lambda _, vm: vm.condition,
    ),
    Column("GROUP", "VMs of one group may share pages", lambda _, vm: vm.group or "-"),
    Column("MEMSZ", "configured memory", _pages("memory"), "Memory Size MBytes"),
    Column("GRANT", "guest pages with a frame, shared ones included", _pages("granted"),
           "Memory Granted Size MBytes"),
    Column("CNSM", "machine memory charged to it: a page shared by n counts 1/n",
           _pages("consumed"), "Memory Consumed Size MBytes"),
    Column("SZTGT", "machine memory it is entitled to", _pages("target"), "Target Size MBytes"),
    Column("TCHD", "working set: the active estimate of its memory", _pages("touched"),
           "Touched MBytes"),
    Column("%ACTV", "active memory: the largest of the next three", _percent("active_percent"),
           "% Active Estimate", 0),
    Column("%ACTVS", "slow moving average", _percent("active_slow_percent"),
           "% Active Slow Estimate", 0),
    Column("%ACTVF", "fast moving average", _percent("active_fast_percent"),
           "% Active Fast Estimate", 0),
    Column("%ACTVN", "fast moving average with the running period", _percent("active_next_percent"),
           "% Active Next Estimate", 0),
    Column("MCTL?", "the guest has a balloon driver",
           lambda _, vm: "Y" if vm.balloon_driver else "N"),
    Column("MCTLSZ", "memory in the balloon", _pages("balloon"), "Memctl MBytes"),
    Column("MCTLTGT", "memory the balloon should hold", _pages("balloon_target"),
           "Memctl Target MBytes"),
    Column("MCTLMAX", "most the balloon may hold", _pages("balloon_max"), "Memctl Max MBytes"),
    Column("SWCUR", "memory in the swap file", _pages("swapped"), "Swapped MBytes"),
    Column("SWTGT", "memory last asked of it by swap", _pages("swap_target"), "Swap Target MBytes"),
    Column("SWR/s", "read from swap, MB a second", _rate("swap_reads_total"),
           "Swap Read MBytes/sec"),
    Column("SWW/s", "written to swap, MB a second", _rate("swap_writes_total"),
           "Swap Written MBytes/sec"),
    Column("CACHESZ", "most the compression cache may take", _pages("cache_max"),
           "Compression Cache Size MBytes"),
    Column("CACHEUSD", "what the compression cache takes", _pages("cache_used"),
           "Compression Cache Used MBytes"),
    Column("ZIPPED", "guest memory in the compression cache", _pages("zipped"),
           "Compressed Memory MBytes"),
    Column("ZIP/s", "compressed, MB a second", _rate("zips_total"), "Compression MBytes/sec"),
    Column("UNZIP/s", "decompressed, MB a second", _rate("unzips_total"),
           "Decompression MBytes/sec"),
    Column("SHRD", "guest memory mapped to shared frames", _pages("shared"), "Shared MBytes"),
    Column("ZERO", "of it, pages of zeroes", _pages("zero"), "Zero MBytes"),
    Column("SHRDSVD", "machine memory sharing saves", _pages("shared_saved"),
           "Shared Saved MBytes"),
    Column("COWH", "pages that are hints for sharing", _pages("hints"),
           "Copy On Write Hint MBytes"),
    Column("LPG", "memory in large pages", _pages("large"), "Large Page MBytes"),
    Column("OVHD", "page tables and reserve", _pages("overhead"), "Overhead MBytes", 2),
    Column("OVHDMAX", "overhead reserved at power-on", _pages("overhead_max"),
           "Overhead Max MBytes", 2),
)  # fmt: skip
BY_NAME = {column.name: column for column in COLUMNS}

# What is shown first when there is not room for all.
PRIORITY = (
    "NAME", "STATE", "MEMSZ", "GRANT", "TCHD", "SHRD", "SWCUR", "MCTLSZ", "ZIPPED", "SHRDSVD",
    "ZERO", "SZTGT", "MCTLTGT", "SWR/s", "SWW/s", "%ACTV", "CNSM", "CACHEUSD", "ZIP/s", "UNZIP/s",
    "MCTL?", "OVHD", "LPG", "CACHESZ", "MCTLMAX", "COWH", "GROUP", "SWTGT", "%ACTVS", "%ACTVF",
    "%ACTVN", "OVHDMAX",
)  # fmt: skip


def choose_names(
    width: int, name_width: int, priority: Sequence[str] = PRIORITY, least: int = 6
) -> set[str]:
    """Names of the columns that fit ``width`` characters, the most telling ones. A column takes
    ``least`` characters at least."""
    chosen, left = set(), width
    for name in priority:
        needed = 2 + (name_width if name == "NAME" else max(len(name), least))
        if name == "STATE":
            needed = 10
        if needed > left:
            break
        chosen.add(name)
        left -= needed
    return chosen


def choose_columns(width: int, name_width: int) -> list[Column]:
    """The columns that fit ``width`` characters, the most telling ones, in the usual order."""
    chosen = choose_names(width, name_width)
    return [column for column in COLUMNS if column.name in chosen]


def cell(column: Column, interval: Interval, vm: VmMemory) -> str:
    """What a cell of the table shows."""
    value = column.value(interval, vm)
    return value if isinstance(value, str) else f"{value:.{column.decimals}f}"


def _short(pages: float) -> str:
    """MiB in six characters, so that every header line of a host below 100 GB fits 80 columns."""
    amount = mebibytes(pages)
    return f"{amount:6.1f}" if amount < 999.95 else f"{amount:6.0f}"


def header_lines(interval: Interval) -> list[str]:
    """The lines above the table: host memory, sharing, swap, compression, balloons."""
    host = interval.now.host
    before = None if interval.before is None else interval.before.host
    reads = interval.rate(host.swap_reads_total, before.swap_reads_total if before else 0)
    writes = interval.rate(host.swap_writes_total, before.swap_writes_total if before else 0)
    managed = host.total - host.vmkernel

    def line(name: str, *parts: tuple[float, str]) -> str:
        return f"{name:<6}/MB:" + ", ".join(f"{_short(pages)} {what}" for pages, what in parts)

    return [
        line("PMEM", (host.total, "total"), (host.vmkernel, "vmk"),
             (host.guest + host.overhead, "other"), (host.free, "free")),
        line("VMKMEM", (managed, "managed"), (host.min_free, "minfree"), (host.reserved, "rsvd"),
             (host.unreserved, "ursvd")) + f", {host.state.name.lower()} state",
        line("PSHARE", (host.shared, "shared"), (host.common, "common"),
             (host.sharing_saved, "saving")),
        line("SWAP", (host.swapped, "curr"), (host.swap_target, "rclmtgt"))
        + f", {reads:6.2f} r/s, {writes:6.2f} w/s",
        line("ZIP", (host.zipped, "zipped"), (host.zip_saved, "saved")),
        line("MEMCTL", (host.balloon, "curr"), (host.balloon_target, "target"),
             (host.balloon_max, "max")),
    ]  # fmt: skip


def time_line(interval: Interval, wall_seconds: float) -> str:
    """The first line of the screen."""
    host, vms = interval.now.host, interval.now.vms
    running = [vm for vm in vms if vm.condition != "off"]
    configured = sum(vm.memory for vm in running)
    ratio = configured / host.total
    return (
        f"{host.time_ns / 1e9:.2f} s virtual, {wall_seconds:.1f} s wall; {len(running)} VMs, "
        f"{mebibytes(configured):.0f} MB on {mebibytes(host.total):.0f} MB: "
        f"overcommitted {ratio:.2f} x"
    )
