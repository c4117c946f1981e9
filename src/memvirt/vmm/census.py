# SPDX-License-Identifier: Apache-2.0
"""Counting the pages of a VM by state, in one pass: done at every quiescent point."""

from __future__ import annotations

import numpy as np

from memvirt.compiled import compiled
from memvirt.mmu.page_state import STATE_SHARED

from .pmap import PageState

States = np.ndarray[tuple[int], np.dtype[np.uint8]]
Frames = np.ndarray[tuple[int], np.dtype[np.uint32]]
Owners = np.ndarray[tuple[int], np.dtype[np.int32]]
Counts = np.ndarray[tuple[int], np.dtype[np.int64]]

_STATES = len(PageState)


@compiled
def _count(state: States, frame: Frames, owner: Owners, counts: Counts) -> float:
    cost = 0.0
    for ppn in range(state.size):
        counts[state[ppn]] += 1
        if state[ppn] == STATE_SHARED:
            cost += 1.0 / (-1 - owner[frame[ppn]])  # ``MachineMemory.owner`` of a SHARED frame
    return cost


def census(state: States, frame: Frames, owner: Owners) -> tuple[list[int], float]:
    """Pages by ``PageState``, and what the shared ones cost: 1/n for a frame used by n pages.

    ``state`` (uint8) and ``frame`` (uint32) are a pmap's, ``owner`` (int32) the machine's.
    """
    counts = np.zeros(_STATES, np.int64)
    cost = float(_count(state, frame, owner, counts))
    return counts.tolist(), cost
