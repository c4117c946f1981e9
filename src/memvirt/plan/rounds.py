# SPDX-License-Identifier: Apache-2.0
"""A host's VMkernel over weeks of measurements: one round of its policy for each interval.

``vmkernel.VmKernel.balance`` runs every few seconds and ends, in minutes, where nothing changes any
more. Measurements are minutes apart, so a plan computes that end directly, with the VMkernel's own
functions: free memory gives the state; in *soft* the balloons of the VMs with the lowest adjusted
shares per page bring it to the border of *clear*, none beyond its balloon's most or below its
reservation; what the balloons cannot give is compressed and swapped in *hard*. Growth that comes
within one balance period, before balloons can act, is compressed and swapped too. What was swapped
comes back as the VM touches it. An interval in which the host has more than enough costs nothing.

What this does not see: bursts shorter than the interval, and guests that return memory slowly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .assumptions import Draw
from .fleet import Fleet
from .policy import (
    CLEAR_PERCENT,
    DEFLATE_PERCENT,
    HARD_PERCENT,
    SOFT_PERCENT,
    HostRules,
    HostState,
    revoke,
    weights,
)

Pages = np.ndarray[Any, np.dtype[np.float64]]
Counts = np.ndarray[Any, np.dtype[np.int64]]

BALLOON, COMPRESS, SWAP, THRASH = range(4)
MECHANISMS = ("balloon", "compress", "swap", "thrash")
_MOST_ITERATIONS = 16


@dataclass(frozen=True)
class HostRun:
    """One host under one draw. Series have a value for each point, in pages.

    ``affected`` has shape (mechanisms, VMs): intervals in which a VM had a page ballooned,
    compressed or swapped, or less memory than it actively uses (*thrash*). ``peak`` are the most
    pages each.
    """

    managed: int
    min_free: int
    demand: Pages  # what all VMs would take with memory enough, overhead included
    free: Pages
    state: np.ndarray[Any, np.dtype[np.int8]]
    ballooned: Pages
    compressed: Pages
    swapped: Pages
    swapped_in: Pages  # pages that came back from swap in the interval
    affected: Counts
    peak: Pages

    @property
    def worst(self) -> HostState:
        return HostState(int(self.state.max(initial=0)))

    @property
    def limiting(self) -> int:
        """The point at which least memory would be free without any reclaiming."""
        return int(np.argmax(self.demand))


@dataclass
class _Now:
    """What is reclaimed of each VM at one point, in pages; compressed pages take half a frame."""

    balloon: Pages
    zipped: Pages
    swapped: Pages

    @property
    def freed(self) -> Pages:
        """Frames that come free by it."""
        return np.asarray(self.balloon + self.zipped / 2 + self.swapped)

    def resident(self, demand: Pages) -> Pages:
        """Pages of ``demand`` that nothing was done to: a frame each."""
        return np.maximum(demand - self.balloon - self.zipped - self.swapped, 0)

    def spill(self, frames: Pages) -> None:
        """Compressed pages leave the caches for swap, so that ``frames`` come free, or all do."""
        spilled = np.minimum(2 * frames, self.zipped)
        self.zipped, self.swapped = self.zipped - spilled, self.swapped + spilled


class _Host:
    """The host's VMs, as arrays, and what reclaiming does to them."""

    def __init__(self, rules: HostRules, fleet: Fleet, draw: Draw) -> None:
        self.rules, self.draw = rules, draw
        settings = [vm.settings for vm in fleet.vms]
        self.memory = np.array([s.memory for s in settings], np.float64)
        self.maximum = np.array([s.maximum for s in settings], np.float64)
        self.reservation = np.array([s.reservation for s in settings], np.float64)
        self.shares = np.array([s.shares for s in settings], np.float64)
        balloons = np.array([rules.balloon_max(m) for m in self.memory], np.float64)
        self.balloon_max = np.where([vm.driver for vm in fleet.vms], balloons, 0.0)
        self.cache_pages = 2 * np.array([rules.cache_max(m) for m in self.memory], np.float64)

    def weight(self, active: Pages) -> Pages:
        return weights(self.shares, active / self.memory, self.rules.options.idle_tax)

    def inflate(self, need: float, weight: Pages, now: _Now, demand: Pages) -> None:
        """Balloons take ``need`` resident pages of VMs; what is compressed or swapped stays."""
        held = np.maximum(demand - now.freed, 0)
        room = np.minimum(self.balloon_max - now.balloon, now.resident(demand))
        room = np.maximum(room, 0)
        floor = np.maximum(np.minimum(self.reservation, held), held - room)
        now.balloon = now.balloon + revoke(need, weight, held, floor)

    def evict(self, need: float, weight: Pages, now: _Now, demand: Pages) -> None:
        """Compress what compresses and fits the caches, swap the rest, until ``need`` is free."""
        held = np.maximum(demand - now.freed, 0)
        frames = revoke(need, weight, held, np.minimum(self.reservation, held))
        resident = now.resident(demand)
        taken = np.minimum(frames, resident)
        part = self.draw.compressible
        zipped = np.minimum(taken * part / (1 - part / 2), self.cache_pages - now.zipped)
        zipped = np.clip(zipped, 0, 2 * (resident - taken))
        now.spill(frames - taken)
        now.zipped = now.zipped + zipped
        now.swapped = now.swapped + taken - zipped / 2


def simulate_host(
    rules: HostRules, fleet: Fleet, draw: Draw, demand: tuple[Pages, Pages] | None = None
) -> HostRun:
    """Run the policy over the series of ``fleet``, all on one host."""
    in_use, active = draw.demand(fleet) if demand is None else demand
    host = _Host(rules, fleet, draw)
    overhead = np.array([vm.overhead for vm in fleet.vms]) @ fleet.on()
    # Beyond its limit a VM's memory is reclaimed at all times.
    backed = np.minimum(in_use, host.maximum[:, None])
    total = backed.sum(axis=0) + overhead
    # Large pages hide what could be shared until the host leaves state high.
    short = rules.managed - total < rules.high_border
    saved = np.where(short, backed.sum(axis=0) * draw.shared, 0.0)
    room = rules.managed - overhead + saved
    return _Rounds(rules, host, fleet.interval, in_use, active, room).run(total)


class _Rounds:
    """The rounds of one host. ``room``: frames for guest memory at each point."""

    def __init__(
        self, rules: HostRules, host: _Host, interval: float, in_use: Pages, active: Pages,
        room: Pages,
    ) -> None:  # fmt: skip
        self.rules, self.host = rules, host
        self.in_use, self.active, self.room = in_use, active, room
        self.over = np.maximum(in_use - host.maximum[:, None], 0)  # beyond limits
        self.free = room - (in_use - self.over).sum(axis=0)  # if nothing else is reclaimed
        self.soft, self.hard = rules.border(SOFT_PERCENT), rules.border(HARD_PERCENT)
        self.clear, self.deflate = rules.border(CLEAR_PERCENT), rules.border(DEFLATE_PERCENT)
        # Part of an interval's growth that comes before balloons can answer.
        self.burst = min(1.0, rules.options.balance_period / interval)

    def run(self, total: Pages) -> HostRun:
        vms, points = self.in_use.shape
        state, states = np.zeros(points, np.int8), self.rules.states()
        left = self.free.copy()
        out = np.zeros((4, points))  # ballooned, compressed, swapped, swapped in
        affected, peak = np.zeros((4, vms), np.int64), np.zeros((4, vms))
        limited = np.asarray(self.over.max(axis=0, initial=0) > 0)
        zero = np.zeros(vms)
        now, reclaimed = _Now(zero, zero, zero), False
        for t in self._points(limited):
            if not reclaimed and self.free[t] >= self.soft and not limited[t]:
                state[t] = states.update(int(self.free[t]))
                continue
            before = float(left[t - 1] if t else self.free[0])
            now, came_back, lowest = self._round(t, before, now)
            left[t] = self._have(t, now)
            gone = np.stack((now.balloon, now.zipped, now.swapped))
            missing = self.active[:, t] - (self.in_use[:, t] - gone.sum(axis=0))
            pages = np.vstack((gone, np.where(gone.sum(axis=0) >= 1, missing, 0)))
            affected += pages >= 1
            np.maximum(peak, pages, out=peak)
            out[:3, t], out[3, t] = gone.sum(axis=1), came_back
            # The interval has seen the state that made it reclaim, whatever is free at its end.
            state[t] = states.update(int(min(lowest, left[t])))
            states.update(int(left[t]))
            reclaimed = bool(now.freed.sum() >= 1)
        return HostRun(
            self.rules.managed, self.rules.min_free, total, left, state,
            out[0], out[1], out[2], out[3], affected, peak,
        )  # fmt: skip

    def _points(self, limited: Any) -> range:
        """The points at which anything can happen: none, if the host is always in state high."""
        low = np.flatnonzero((self.free < self.rules.high_border) | limited)
        return range(int(low[0]) if low.size else limited.size, limited.size)

    def _held(self, t: int, now: _Now) -> Pages:
        """Frames each VM holds."""
        return np.maximum(self.in_use[:, t] - now.freed, 0)

    def _have(self, t: int, now: _Now) -> float:
        """Free frames."""
        return float(self.room[t] - self._held(t, now).sum())

    def _round(self, t: int, before: float, last: _Now) -> tuple[_Now, float, float]:
        """What is reclaimed at point ``t``; pages read back from swap; free frames at the worst."""
        host = self.host
        weight = host.weight(self.active[:, t])
        now = self._kept(t, last)
        came_back = float((last.swapped - now.swapped).sum())
        self._enforce_limits(t, now)
        growth = float(self.free[t - 1] - self.free[t]) * self.burst if t else 0.0
        lowest = np.inf
        if growth > 0 and before - growth < self.hard:
            need = min(self.soft - (before - growth), self.soft - self._have(t, now))
            if need > 0:
                lowest = self.hard - 1
                host.evict(need, weight, now, self.in_use[:, t])
        have = self._have(t, now)
        need = 0.0
        if have < self.soft:  # balloons act before free memory falls to the border of hard
            need, lowest = self.clear - have, min(lowest, max(have, self.hard))
        if last.balloon.sum() >= 1:  # balloons deflate late
            need = max(need, min(float(last.balloon.sum()), self.deflate - have))
        if need > 0:
            host.inflate(need, weight, now, self.in_use[:, t])
        for _ in range(_MOST_ITERATIONS):
            have = self._have(t, now)
            if have >= self.hard:
                break
            lowest = min(lowest, self.hard - 1)
            host.evict(self.soft - have, weight, now, self.in_use[:, t])
            if self._have(t, now) - have < 1:
                lowest = min(lowest, have)  # nobody can give any more
                break
        return now, came_back, float(lowest)

    def _kept(self, t: int, last: _Now) -> _Now:
        """What stays compressed and swapped: what the VM has neither touched nor given back."""
        demand = self.in_use[:, t]
        touched = np.where(demand > 0, self.active[:, t] / np.maximum(demand, 1), 1.0)
        zipped, swapped = last.zipped * (1 - touched), last.swapped * (1 - touched)
        kept = zipped + swapped
        scale = np.minimum(kept, demand) / np.maximum(kept, 1e-9)
        return _Now(np.zeros_like(demand), zipped * scale, swapped * scale)

    def _enforce_limits(self, t: int, now: _Now) -> None:
        """Memory beyond a VM's limit: its balloon takes it, the rest is swapped."""
        missing = np.maximum(self.over[:, t] - now.freed, 0)
        if missing.any():
            taken = np.minimum(missing, now.resident(self.in_use[:, t]))
            now.spill(missing - taken)
            ballooned = np.minimum(taken, self.host.balloon_max)
            now.balloon = now.balloon + ballooned
            now.swapped = now.swapped + taken - ballooned
