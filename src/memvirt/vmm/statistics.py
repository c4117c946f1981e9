# SPDX-License-Identifier: Apache-2.0
"""What one VMM did and holds, as a frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memvirt.machine.memory import FrameKind

from .pmap import PageState

if TYPE_CHECKING:
    from .monitor import VirtualMachineMonitor

# Counts the VMM keeps itself; the others are the state record's.
COUNTED = (
    "moved", "unmapped_by_host", "discarded", "zips", "swap_writes", "brought_back", "unzips",
    "swap_reads", "shares", "share_breaks", "large_made", "large_breaks",
)  # fmt: skip
_STATE_COUNTERS = (
    "hidden_faults", "true_faults", "trace_faults", "resynchronizations", "shadow_zaps",
    "root_switches", "entries_dropped", "walks", "guest_walk_references", "stall_ns",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """Guest pages by state, frames by use, and what the VMM did. Counts since power-on."""

    pages: int
    unmapped: int
    private: int
    shared: int
    compressed: int
    swapped: int
    frames_guest: int
    frames_shadow: int
    frames_nested: int
    frames_reserve: int
    frames_compressed: int
    demand_allocated: int
    stall_ns: int  # virtual time the guest waited for pages kept elsewhere
    moved: int
    unmapped_by_host: int
    discarded: int  # unmapped pages of zeroes
    zips: int
    swap_writes: int
    brought_back: int
    unzips: int
    swap_reads: int
    shares: int
    share_breaks: int
    large_made: int
    large_breaks: int
    hidden_faults: int
    true_faults: int
    trace_faults: int
    resynchronizations: int
    shadow_zaps: int
    entries_dropped: int
    root_switches: int
    walks: int
    walk_references: int
    guest_walks: int
    guest_walk_references: int


def memory_statistics(vmm: VirtualMachineMonitor) -> MemoryStatistics:
    """The statistics of a VMM whose processor is stopped."""
    state, pmap = vmm.state, vmm.pmap
    mine = vmm.machine.kind[vmm.machine.owned_by(vmm.vm_id)]
    counts = np.bincount(mine, minlength=len(FrameKind))
    return MemoryStatistics(
        pages=pmap.pages,
        **{page_state.name.lower(): pmap.count(page_state) for page_state in PageState},
        frames_guest=int(counts[FrameKind.GUEST]),
        frames_shadow=int(counts[FrameKind.SHADOW]),
        frames_nested=int(counts[FrameKind.NESTED]),
        frames_reserve=int(counts[FrameKind.RESERVE]),
        frames_compressed=int(counts[FrameKind.COMPRESSED]),
        demand_allocated=int(state.frames_demand_allocated),
        **vmm.counts,
        **{name: int(getattr(state, name)) for name in _STATE_COUNTERS},
        walk_references=int(state.mmu.walk_references),
        guest_walks=int(state.mmu.guest_walks),
    )
