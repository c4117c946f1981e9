# SPDX-License-Identifier: Apache-2.0
"""What one VMM did and holds, as a frozen record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memvirt.machine.memory import FrameKind

from .content import COMPRESS, SWAP, PageContents
from .pmap import PageState
from .vmm_state import VmmState

# Counts the VMM keeps itself; the others are the state record's.
COUNTED = (
    "moved", "unmapped_by_host", "discarded", "brought_back", "shares", "share_breaks",
    "large_made", "large_breaks",
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
    stored: int  # in other backing stores
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


def memory_statistics(
    contents: PageContents, state: VmmState, counted: Mapping[str, int]
) -> MemoryStatistics:
    """The statistics of a VMM whose processor is stopped; ``counted`` has its own counts."""
    pmap, machine = contents.pmap, contents.machine
    mine = machine.kind[machine.owned_by(contents.vm_id)]
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
        zips=contents.total_put(COMPRESS),
        unzips=contents.total_taken(COMPRESS),
        swap_writes=contents.total_put(SWAP),
        swap_reads=contents.total_taken(SWAP),
        **counted,
        **{name: int(getattr(state, name)) for name in _STATE_COUNTERS},
        walk_references=int(state.mmu.walk_references),
        guest_walks=int(state.mmu.guest_walks),
    )
