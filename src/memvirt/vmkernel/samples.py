# SPDX-License-Identifier: Apache-2.0
"""What the VMkernel knows at one moment, as frozen records; the columns are those of esxtop.

All quantities are numbers of 4 KiB pages unless they say otherwise. Fields ending in ``_total``
count since power-on; rates (``/s``) are differences of two samples over virtual time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from memvirt.address import PAGE_BYTES
from memvirt.notebook import html_table
from memvirt.size import format_size

__all__ = ["HostMemory", "HostState", "Sample", "VmMemory"]


class HostState(IntEnum):
    """The host's state by its free memory, from plenty to none."""

    HIGH = 0
    CLEAR = 1
    SOFT = 2
    HARD = 3
    LOW = 4


@dataclass(frozen=True, slots=True)
class HostMemory:
    """One host. esxtop's header lines PMEM, VMKMEM, PSHARE, SWAP, ZIP and MEMCTL."""

    time_ns: int  # virtual time of the host
    state: HostState
    # PMEM and VMKMEM
    total: int  # machine memory
    vmkernel: int  # frames of the VMkernel itself
    overhead: int  # page tables and compression caches of VMs, and what each keeps in reserve
    guest: int  # frames that back guest pages, shared ones once
    free: int  # free frames, with what could be taken back of the VMs' unused reserves
    min_free: int
    reserved: int
    unreserved: int
    # PSHARE
    shared: int  # guest pages that are mapped to shared frames
    common: int  # shared frames
    zero: int  # guest pages mapped to a frame of zeroes
    # SWAP
    swapped: int
    swap_target: int
    swap_reads_total: int
    swap_writes_total: int
    # ZIP
    zipped: int  # guest pages in compression caches
    zip_frames: int  # frames the caches take
    stored: int  # guest pages that other mechanisms keep
    # MEMCTL
    balloon: int
    balloon_target: int
    balloon_max: int

    @property
    def sharing_saved(self) -> int:
        """PSHARE saving: frames that sharing saves."""
        return self.shared - self.common

    @property
    def zip_saved(self) -> int:
        """ZIP saved: frames that compression saves."""
        return self.zipped - self.zip_frames


@dataclass(frozen=True, slots=True)
class VmMemory:
    """One VM. The comments name esxtop's columns."""

    vm_id: int
    name: str
    group: str
    condition: str  # "running", "waiting", "blocked", "paused", "throttled", "off"
    reason: str  # why it is blocked, paused or throttled, else empty
    memory: int  # MEMSZ
    granted: int  # GRANT: guest pages with a frame, shared ones included
    consumed: float  # machine memory charged to it: a frame shared by n pages counts 1/n each
    target: int  # SZTGT
    entitled_min: int  # reservation
    entitled_max: int  # limit, or its memory
    shares: int
    active_percent: float  # %ACTV: the estimate in force, the maximum of the next three
    active_slow_percent: float  # %ACTVS
    active_fast_percent: float  # %ACTVF
    active_next_percent: float  # %ACTVN
    touched: int  # TCHD
    balloon_driver: bool  # MCTL?
    balloon: int  # MCTLSZ
    balloon_target: int  # MCTLTGT
    balloon_max: int  # MCTLMAX
    swapped: int  # SWCUR
    swap_target: int  # SWTGT
    swap_reads_total: int  # SWR/s
    swap_writes_total: int  # SWW/s
    zipped: int  # guest pages in the compression cache
    cache_used: int  # CACHEUSD: frames the compression cache takes
    cache_max: int  # CACHESZ: frames it may take
    stored: int  # guest pages that other mechanisms keep
    zips_total: int  # ZIP/s
    unzips_total: int  # UNZIP/s
    shared: int  # SHRD
    zero: int  # ZERO
    shared_saved: float  # SHRDSVD
    hints: int  # COWH
    overhead: int  # OVHD
    overhead_max: int  # OVHDMAX
    large: int  # guest pages in large pages


@dataclass(frozen=True, slots=True)
class Sample:
    """The host and all its VMs, in the order they were powered on, at one moment."""

    host: HostMemory
    vms: tuple[VmMemory, ...]

    def __repr__(self) -> str:
        host = self.host
        return (
            f"<Sample at {host.time_ns / 1e9:.3f} s: {host.state.name.lower()}, "
            f"{format_size(host.free * PAGE_BYTES)} of {format_size(host.total * PAGE_BYTES)} "
            f"free, {len(self.vms)} VMs>"
        )

    def _repr_html_(self) -> str:
        """The table of VMs for notebooks, in MiB."""

        def mebibytes(pages: float) -> float:
            return round(pages * PAGE_BYTES / (1 << 20), 1)

        names = ("memory", "granted", "consumed", "target", "balloon", "zipped", "swapped")
        headers = ("VM", "condition", *(f"{name} (MiB)" for name in names), "active (%)")
        rows = (
            (vm.name, vm.condition, *(mebibytes(getattr(vm, name)) for name in names),
             round(vm.active_percent, 1))
            for vm in self.vms
        )  # fmt: skip
        return html_table(repr(self)[1:-1], headers, rows)
