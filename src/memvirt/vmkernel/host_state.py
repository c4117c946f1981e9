# SPDX-License-Identifier: Apache-2.0
"""Minimum free memory and the host's state: which mechanisms may run.

A state is entered when free memory falls below its border, and left when it rises above the border
of the next better one; so every border has hysteresis. In percent of minimum free memory: *clear*
below 400, *soft* below 64 (left above 100), *hard* below 32 (left above 64), *low* below 16 (left
above 32). Sources: VMware, "Understanding Memory Resource Management in VMware ESX Server"; vSphere
Resource Management; the sliding scale and state *clear* as in ESXi 6.0 and later. An esxtop screen
of a 32,510 MB host (939 MB minimum, 255 % free: *clear*) is a test.
"""

from __future__ import annotations

from memvirt.address import PAGE_BYTES

from .samples import HostState

_PAGES_PER_MIB = (1 << 20) // PAGE_BYTES
# (upper end in MiB of managed memory, part of what lies below it)
_SLIDING_SCALE = ((4096, 0.06), (12288, 0.04), (28672, 0.02), (float("inf"), 0.01))

CLEAR_PERCENT, SOFT_PERCENT, HARD_PERCENT, LOW_PERCENT = 100, 64, 32, 16
_HIGH_MARGIN = 1.05  # above the border of clear, by which it is left again


def minimum_free_pages(managed_pages: int, percent: float = 0) -> int:
    """Minimum free memory of a host, in pages; ``percent`` overrides the sliding scale."""
    if percent:
        return int(managed_pages * percent / 100)
    total, below = 0.0, 0.0
    managed = managed_pages / _PAGES_PER_MIB
    for upper, part in _SLIDING_SCALE:
        total += max(min(managed, upper) - below, 0) * part
        below = upper
    return int(total * _PAGES_PER_MIB)


class HostStateMachine:
    """The host's state by its free memory. ``min_free`` is in pages."""

    def __init__(self, min_free: int, high_percent: float = 400) -> None:
        self.min_free = min_free
        self.state = HostState.HIGH
        self.worst = HostState.HIGH
        # Percent of min_free below which a state is entered, and above which it is left.
        self._enter = {
            HostState.CLEAR: high_percent,
            HostState.SOFT: SOFT_PERCENT,
            HostState.HARD: HARD_PERCENT,
            HostState.LOW: LOW_PERCENT,
        }
        self._leave = {
            HostState.CLEAR: high_percent * _HIGH_MARGIN,
            HostState.SOFT: CLEAR_PERCENT,
            HostState.HARD: SOFT_PERCENT,
            HostState.LOW: HARD_PERCENT,
        }

    def border(self, percent: float) -> int:
        """Pages that ``percent`` of minimum free memory are."""
        return int(self.min_free * percent / 100)

    def update(self, free: int) -> HostState:
        """The state now that ``free`` pages are free. Several states may be passed at once."""
        while self.state < HostState.LOW:
            worse = HostState(self.state + 1)
            if free >= self.border(self._enter[worse]):
                break
            self.state = worse
        self.worst = max(self.worst, self.state)
        while self.state > HostState.HIGH:
            if free < self.border(self._leave[self.state]):
                break
            self.state = HostState(self.state - 1)
        return self.state
