# SPDX-License-Identifier: Apache-2.0
"""Which pages of a live VM leave memory: without an agent in the guest, by what comes back.

Nothing cheap tells which resident page of a stock QEMU was read last. What the pager does know for
certain is which pages were wanted back after they had left. So victims are taken at random (as ESXi
does for swap, which has no better knowledge either: Waldspurger, OSDI 2002, section 3), but a page
that came back is spared for a while, twice as long for each time it came back again. Hot pages are
thereby found by a few wrong guesses each, and then left alone. TMO (Weiner et al., ASPLOS 2022)
steers by refaults in the same spirit.

Pages are taken in clusters of neighbours, for one write-protection and one punch do for a run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memvirt.live.runs import runs_of

from .channel import MOST_RUNS, Runs
from .page_states import PageIndex, PageState, PageTableFile
from .paged_memory import PagedMemory

_CLUSTER = 16  # pages
_SPARED_SECONDS = 1.0  # the least time between a page's return and its next eviction
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Goal:
    """What to evict: memory above ``target`` bytes, and whatever is ``cold`` seconds old; None for
    neither. A page's age is the time since it came back last (or since the attach)."""

    target: int | None = None
    cold: float | None = None


class VictimSelection:
    """Chooses victims for one VM. ``seed`` makes the choice repeatable."""

    def __init__(self, table: PageTableFile, memory: PagedMemory, goal: Goal, seed: int) -> None:
        self._table = table
        self._memory = memory
        self._goal = goal
        self._random = np.random.default_rng(seed)
        self._queue: list[int] = []  # clusters, next at the end
        self._eligible: NDArray[np.bool_] = np.zeros(0, bool)
        self._looked_at = 0.0
        self._forced = False

    def next_batch(self, most: int, *, forced: bool) -> Runs:
        """Runs of at most ``most`` pages to evict now; empty if there is nothing to evict.

        ``forced``: memory must become free, so that hot pages go after all others, too; else only
        cold ones are chosen.
        """
        if not forced and self._goal.cold is None:
            return []
        now = time.monotonic()
        if forced != self._forced:
            self._queue, self._looked_at, self._forced = [], 0.0, forced
        if not self._queue:
            if now - self._looked_at < _LOOK_SECONDS and self._looked_at:
                return []
            self._look(now)
        runs: Runs = []
        pages = 0
        while self._queue and pages + _CLUSTER <= most and len(runs) + _CLUSTER <= MOST_RUNS:
            first = self._queue.pop() * _CLUSTER
            part = self._eligible[first : first + _CLUSTER]
            for begin, count in runs_of(np.flatnonzero(part)):
                runs.append((PageIndex(first + begin), count))
                pages += count
        return sorted(runs)

    def _look(self, now: float) -> None:
        """Find all pages that may go, and the order of their clusters."""
        self._looked_at = now
        table = self._table
        resident = (table.states == PageState.RESIDENT) & self._memory.present()
        age = np.maximum(now - table.restored_at.astype(np.float64), 0)
        factor = np.exp2(table.refaults)
        if self._forced:
            self._eligible = resident & (age >= _SPARED_SECONDS)
            hotness = np.where(age < _SPARED_SECONDS * factor, 256, 0) + table.refaults
        else:
            assert self._goal.cold is not None
            self._eligible = resident & (age >= self._goal.cold * factor)
            hotness = table.refaults.astype(np.int64)
        hottest = _by_cluster(np.where(self._eligible, hotness, -1)).max(axis=1)
        candidates = np.flatnonzero(hottest >= 0)
        self._random.shuffle(candidates)
        order = np.argsort(-hottest[candidates], kind="stable")  # the coldest at the end
        self._queue = candidates[order].tolist()

    def note_evicted(self, runs: Runs) -> None:
        """These pages have left: the memory of their returns fades."""
        refaults = self._table.refaults
        for first, count in runs:
            part = refaults[first : first + count]
            part -= part > 0


def _by_cluster(values: NDArray[np.int64]) -> NDArray[np.int64]:
    padded = np.full(-(-len(values) // _CLUSTER) * _CLUSTER, -1, np.int64)
    padded[: len(values)] = values
    return padded.reshape(-1, _CLUSTER)
