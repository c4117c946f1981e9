# SPDX-License-Identifier: Apache-2.0
"""What is known of this host and its live VMs at one moment, as frozen records.

The fields are named as those of ``vmkernel.samples`` where they mean the same. All quantities
are numbers of 4 KiB pages unless they say otherwise; **None is unknown, never 0**. docs/live.md
names the source of each.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LiveHostMemory:
    """This host."""

    time_ns: int  # since the start of watching
    total: int  # MemTotal
    free: int  # MemFree
    available: int  # MemAvailable: what could be had without swapping
    swap_total: int
    swap_used: int
    swap_reads_total: int | None  # pages, since boot (pswpin)
    swap_writes_total: int | None
    ksm_running: bool | None  # None: this kernel has no KSM
    ksm_shared: int | None  # pages merged, all processes of the host
    ksm_frames: int | None
    balloon: int | None  # of all VMs; None if one is unknown
    cost_percent: float  # of one processor, what watching takes
    scan_seconds: float  # what the last look at all pages took
    working_set: str  # the way it is measured
    working_set_problem: str  # why it is not; "" if it is


@dataclass(frozen=True, slots=True)
class LiveVmMemory:
    """One live VM."""

    vm_id: int  # process number
    name: str
    condition: str  # QEMU's run state, "unreachable", "gone"
    reason: str  # why something of it is unknown; else empty
    backing: str | None  # kinds of memory of its RAM blocks
    kvm: bool | None
    memory: int | None  # MEMSZ
    granted: int | None  # GRANT
    consumed: float | None  # CNSM: a frame mapped by n pages counts 1/n
    untouched: int | None
    active_percent: float | None
    active_slow_percent: float | None
    active_fast_percent: float | None
    touched: int | None  # TCHD
    balloon_driver: bool | None  # MCTL?: there is a balloon device
    balloon: int | None  # MCTLSZ
    swapped: int | None  # SWCUR
    major_faults_total: int | None  # pages QEMU waited for: from swap or a file
    shared: int | None  # SHRD: merged by KSM
    zero: int | None  # pages of the host's page of zeroes
    shared_saved: float | None  # SHRDSVD
    large: int | None  # LPG: in large pages of the host
    overhead: int | None  # OVHD: memory of QEMU itself, page tables included
    age_seconds: float | None  # how old the figures of its pages are


@dataclass(frozen=True, slots=True)
class LiveSample:
    """The host and its live VMs, by process number, at one moment."""

    host: LiveHostMemory
    vms: tuple[LiveVmMemory, ...]
