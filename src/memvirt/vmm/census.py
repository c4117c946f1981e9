# SPDX-License-Identifier: Apache-2.0
"""What the shared pages of a VM cost, counted anew only after references have changed."""

from __future__ import annotations

import numpy as np

from memvirt.compiled import compiled
from memvirt.machine.memory import MachineMemory
from memvirt.mmu.page_state import STATE_SHARED

from .pmap import PageState, Pmap

States = np.ndarray[tuple[int], np.dtype[np.uint8]]
Frames = np.ndarray[tuple[int], np.dtype[np.uint32]]
Owners = np.ndarray[tuple[int], np.dtype[np.int32]]


@compiled
def _cost(state: States, frame: Frames, owner: Owners) -> float:
    cost = 0.0
    for ppn in range(state.size):
        if state[ppn] == STATE_SHARED:
            cost += 1.0 / (-1 - owner[frame[ppn]])  # ``MachineMemory.owner`` of a SHARED frame
    return cost


class SharedCost:
    """Frames that the shared pages of ``pmap`` cost: 1/n for a frame used by n pages.

    Another VM that begins or ends to use a frame changes the cost of this one. So the whole is
    counted, when it is asked for, and only if references on the machine, or pages here that are
    shared, have changed since.
    """

    def __init__(self, machine: MachineMemory, pmap: Pmap) -> None:
        self._machine = machine
        self._pmap = pmap
        self._cost = 0.0
        self._of = (-1, -1)

    def __call__(self) -> float:
        """The cost now. Called with every processor stopped."""
        pmap = self._pmap
        if pmap.count(PageState.SHARED) == 0:
            return 0.0
        now = self._machine.references.changes, pmap.shared_changes
        if now != self._of:
            self._cost = float(_cost(pmap.state, pmap.frame, self._machine.owner))
            self._of = now
        return self._cost


def full_count(machine: MachineMemory, pmap: Pmap) -> tuple[list[int], float]:
    """Pages by ``PageState``, and the cost of the shared ones, counted without memory of before."""
    counts = np.bincount(pmap.state, minlength=len(PageState)).tolist()
    references = machine.references[pmap.frame[pmap.state == PageState.SHARED]]
    return counts, float((1.0 / references).sum())
