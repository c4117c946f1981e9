# SPDX-License-Identifier: Apache-2.0
"""Counting the pages of a VM by state, in one pass: done at every quiescent point."""

from __future__ import annotations

from typing import Any

import numpy as np

from memvirt.compiled import compiled
from memvirt.mmu.page_state import STATE_SHARED

from .pmap import PageState

_STATES = len(PageState)


@compiled
def _count(state: Any, frame: Any, owner: Any, counts: Any) -> float:
    cost = 0.0
    for ppn in range(state.size):
        counts[state[ppn]] += 1
        if state[ppn] == STATE_SHARED:
            cost += 1.0 / (-1 - owner[frame[ppn]])  # ``MachineMemory.owner`` of a SHARED frame
    return cost


def census(state: Any, frame: Any, owner: Any) -> tuple[list[int], float]:
    """Pages by ``PageState``, and what the shared ones cost: 1/n for a frame used by n pages.

    ``state`` (uint8) and ``frame`` (uint32) are a pmap's, ``owner`` (int32) the machine's.
    """
    counts = np.zeros(_STATES, np.int64)
    cost = float(_count(state, frame, owner, counts))
    return counts.tolist(), cost
