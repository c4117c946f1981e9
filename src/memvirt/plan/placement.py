# SPDX-License-Identifier: Apache-2.0
"""Which VM runs on which host: vector packing of demand over time, under admission control.

VMs that peak at different hours share a host well, so a VM is not a size but its demand in each of
some hundred periods (the peak of each). First-fit decreasing is the baseline (Johnson 1973); it is
tried in several orders, and best fit beside it, and then hosts are emptied one by one where their
VMs find room on others. Where that is above the lower bound, more orders are drawn around the
first. No host takes VMs whose reservations and overhead it cannot admit, no two of one ``apart``
name, and VMs of one ``together`` name stay with each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .fleet import Fleet
from .policy import CLEAR_PERCENT, SOFT_PERCENT, HostRules
from .question import Allow
from .rounds import Pages

_PERIODS = 168  # hours of a week
UNPLACED = -1
_MANY = 5000  # items
_MORE_ORDERS, _MANY_FOR_MORE = 32, 1000
_BOUND_PERIODS = 8  # the fullest periods, for which a bound is computed

Hosts = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Placement:
    """The host of each VM, by number; UNPLACED for one that no host can take.

    ``bound`` is a number of hosts that no placement can go below.
    """

    host: Hosts
    hosts: int
    bound: int

    def on(self, number: int) -> Hosts:
        """Positions of the VMs on a host."""
        return np.flatnonzero(self.host == number)


class _Items:
    """What is placed: VMs, or groups of VMs that stay together."""

    def __init__(self, rules: HostRules, fleet: Fleet, profile: Pages) -> None:
        keys: dict[str, int] = {}
        self.of_vm = np.zeros(len(fleet.vms), np.int64)
        for row, vm in enumerate(fleet.vms):
            key = f"together {vm.together}" if vm.together else f"vm {row}"
            self.of_vm[row] = keys.setdefault(key, len(keys))
        count = len(keys)
        self.profile = np.zeros((count, profile.shape[1]))
        np.add.at(self.profile, self.of_vm, profile)
        self.reserved = np.zeros(count)
        reserved = [vm.settings.reservation + vm.overhead for vm in fleet.vms]
        np.add.at(self.reserved, self.of_vm, reserved)
        names = {name: i for i, name in enumerate(sorted({vm.apart for vm in fleet.vms} - {""}))}
        self.apart: list[list[int]] = [[] for _ in range(count)]
        for row, vm in enumerate(fleet.vms):
            if vm.apart:
                self.apart[self.of_vm[row]].append(names[vm.apart])
        self.names = len(names)
        self.capacity = float(rules.managed - rules.border(CLEAR_PERCENT))
        self.reservable = float(rules.reservable())

    def possible(self) -> Any:
        """Items that an empty host can take."""
        clash = np.array([len(set(names)) < len(names) for names in self.apart], bool)
        fits = (self.profile.max(axis=1) <= self.capacity) & (self.reserved <= self.reservable)
        return fits & ~clash


def demand_profile(
    fleet: Fleet, in_use: Pages, shared: float = 0.0, may_be_taken: Pages | None = None
) -> Pages:
    """Demand of each VM with its overhead, the peak of each period: shape (VMs, periods).

    ``shared``: part of memory in use that sharing saves. ``may_be_taken``: pages of each VM at
    each point that may be reclaimed, down to its reservation.
    """
    maximum = np.array([vm.settings.maximum for vm in fleet.vms], np.float64)[:, None]
    overhead = np.array([vm.overhead for vm in fleet.vms])[:, None]
    backed = np.minimum(in_use, maximum) * (1 - shared)
    if may_be_taken is not None:
        reservation = np.array([vm.settings.reservation for vm in fleet.vms], np.float64)[:, None]
        backed = np.maximum(backed - may_be_taken, np.minimum(reservation, backed))
    demand = backed + overhead * fleet.on()
    starts = np.unique(np.linspace(0, fleet.points, min(_PERIODS, fleet.points) + 1).astype(int))
    return np.asarray(np.maximum.reduceat(demand, starts[:-1], axis=1))


class _Bins:
    """Hosts while they are filled."""

    def __init__(self, items: _Items, hosts: int) -> None:
        self.items = items
        self.load = np.zeros((hosts, items.profile.shape[1]))
        self.reserved = np.zeros(hosts)
        self.names = np.zeros((hosts, max(items.names, 1)), bool)
        self.host = np.full(len(items.reserved), UNPLACED, np.int64)
        self.used = 0

    def room(self, item: int, upto: int) -> Any:
        """Which of the first ``upto`` hosts can take an item."""
        items = self.items
        peak = (self.load[:upto] + items.profile[item]).max(axis=1)
        able = (peak <= items.capacity) & (
            self.reserved[:upto] + items.reserved[item] <= items.reservable
        )
        for name in items.apart[item]:
            able &= ~self.names[:upto, name]
        return able, peak

    def put(self, item: int, host: int) -> None:
        items = self.items
        self.load[host] += items.profile[item]
        self.reserved[host] += items.reserved[item]
        self.names[host, items.apart[item]] = True
        self.host[item] = host
        self.used = max(self.used, host + 1)

    def take(self, item: int) -> int:
        items, host = self.items, int(self.host[item])
        self.load[host] -= items.profile[item]
        self.reserved[host] -= items.reserved[item]
        self.names[host, items.apart[item]] = False
        self.host[item] = UNPLACED
        return host


def _pack(items: _Items, order: Any, limit: int, *, best_fit: bool) -> _Bins:
    """Put items one after another: on the first host with room, or on the fullest with room."""
    bins = _Bins(items, limit)
    for item in order:
        upto = min(bins.used + 1, limit)
        able, peak = bins.room(item, upto)
        where = np.flatnonzero(able)
        if where.size:
            opened = where[where < bins.used]
            if best_fit and opened.size:
                bins.put(item, int(opened[np.argmax(peak[opened])]))
            else:
                bins.put(item, int(where[0]))
    return bins


def _balanced(items: _Items, order: Any, hosts: int) -> _Bins:
    """Put items on the host that is then least full: for a given number of hosts."""
    bins = _Bins(items, hosts)
    for item in order:
        able, peak = bins.room(item, hosts)
        where = np.flatnonzero(able)
        if where.size:
            bins.put(item, int(where[np.argmin(peak[where])]))
    return bins


def _better(items: _Items, peak: Pages, fits: Any, found: _Bins, bound: int) -> _Bins:
    """Best fit in orders around that of falling peaks; equal each time it is asked."""
    random = np.random.default_rng(peak.size)
    for number in range(_MORE_ORDERS):
        noise = (0.1, 0.3)[number % 2] * random.standard_normal(peak.size)
        order = np.argsort(-peak * np.exp(noise), kind="stable")
        trial = _pack(items, order[fits[order]], found.used, best_fit=True)
        if (trial.host[fits] == UNPLACED).any():
            continue
        _empty_hosts(trial)
        if trial.used < found.used:
            found = trial
        if found.used <= bound:
            break
    return found


def _empty_hosts(bins: _Bins) -> None:
    """Empty the least loaded host into the others, as long as that works."""
    alive = list(range(bins.used))
    while len(alive) > 1:
        peaks = bins.load.max(axis=1)
        victim = min(alive, key=lambda h: float(peaks[h]))
        moved: list[int] = []
        members = np.flatnonzero(bins.host == victim)
        members = members[np.argsort(-bins.items.profile[members].max(axis=1), kind="stable")]
        for item in members.tolist():
            able, peak = bins.room(item, bins.used)
            targets = [h for h in alive if h != victim and able[h]]
            if not targets:
                break
            bins.take(item)
            bins.put(item, max(targets, key=lambda h: float(peak[h])))
            moved.append(item)
        if len(moved) < members.size:
            for item in moved:
                bins.take(item)
                bins.put(item, victim)
            break
        alive.remove(victim)
    number = {host: new for new, host in enumerate(alive)}
    bins.host = np.array([number.get(int(h), UNPLACED) for h in bins.host], np.int64)
    bins.used = len(alive)


def lower_bound(
    rules: HostRules, fleet: Fleet, in_use: Pages, *, shared: float = 0.0,
    active: Pages | None = None, allow: Allow = Allow.NONE,
) -> int:  # fmt: skip
    """Hosts below which no placement can go, if no more than what ``allow`` names may happen.

    ``active``: pages that may not be taken, as in_use; needed unless ``allow`` is NONE or SWAP.
    The largest of: reservations; VMs that must be apart; and, for each of the fullest periods,
    the bound L2 of bin packing (Martello, Toth, Discrete Applied Mathematics 28, 1990).
    """
    items = _Items(rules, fleet, demand_profile(fleet, in_use, shared))
    fits = items.possible()
    if not fits.any():
        return 0
    capacity = float(rules.managed - rules.border(SOFT_PERCENT))
    profile = items.profile
    if allow is not Allow.NONE:
        taken = _reclaimable(rules, fleet, in_use, active, allow)
        profile = _Items(rules, fleet, demand_profile(fleet, in_use, shared, taken)).profile
        capacity = float(rules.managed)
    fullest = np.argsort(-profile[fits].sum(axis=0), kind="stable")[:_BOUND_PERIODS]
    bounds = [bin_packing_bound(profile[fits][:, period], capacity) for period in fullest]
    bounds.append(bin_packing_bound(items.reserved[fits], items.reservable))
    names = np.zeros(max(items.names, 1), np.int64)
    for item in np.flatnonzero(fits):
        names[items.apart[item]] += 1
    return max(*bounds, int(names.max()), 1)


def _reclaimable(
    rules: HostRules, fleet: Fleet, in_use: Pages, active: Pages | None, allow: Allow
) -> Pages:
    """Frames that the mechanisms of ``allow`` can take of each VM at each point at most."""
    if allow is Allow.SWAP:
        return in_use
    memory = [vm.settings.memory for vm in fleet.vms]
    taken = np.array([rules.balloon_max(pages) for pages in memory], np.float64)
    taken *= [vm.driver for vm in fleet.vms]
    if allow is Allow.COMPRESS:  # a full cache holds two pages in each of its frames
        taken += [rules.cache_max(pages) for pages in memory]
    idle = in_use if active is None else in_use - active
    return np.minimum(taken[:, None], idle)


def bin_packing_bound(sizes: Pages, capacity: float) -> int:
    """The bound L2 of one-dimensional bin packing: bins that ``sizes`` need at least.

    For each threshold k up to half of a bin: items above capacity - k have a bin of their own but
    for items below k, items above a half have one each too, and what items from k to a half do not
    find in the rest of those needs further bins.
    """
    sizes = np.sort(sizes[sizes > 0])[::-1] * (1 - 1e-9)
    sums = np.concatenate(([0.0], np.cumsum(sizes)))
    half = int(np.searchsorted(-sizes, -capacity / 2, side="left"))  # items above a half
    small = np.unique(np.concatenate(([0.0], sizes[half:])))
    alone = np.searchsorted(-sizes, -(capacity - small), side="left")  # above capacity - k
    alone = np.minimum(alone, half)
    upto = np.searchsorted(-sizes, -small, side="right")  # at least k
    rest = (half - alone) * capacity - (sums[half] - sums[alone])
    further = np.ceil(np.maximum(sums[upto] - sums[half] - rest, 0) / capacity)
    return int((half + further).max())


def place(
    rules: HostRules, fleet: Fleet, in_use: Pages, hosts: int | None = None, *,
    shared: float = 0.0,
) -> Placement:  # fmt: skip
    """Place a fleet on as few hosts as can be found, or evenly on ``hosts``.

    ``in_use``: demand to place by, shape (VMs, points), of which sharing saves the part
    ``shared``. With ``hosts`` too few, VMs that find no room under the rules are still given to
    the host with most memory left that can admit them: the policy then shows what that costs.
    """
    items = _Items(rules, fleet, demand_profile(fleet, in_use, shared))
    fits = items.possible()
    peak, mean = items.profile.max(axis=1), items.profile.mean(axis=1)
    orders = [np.argsort(-key, kind="stable") for key in (peak, mean, items.reserved + peak)]
    orders = [order[fits[order]] for order in orders]
    bound = lower_bound(rules, fleet, in_use, shared=shared)
    if hosts is not None:
        bins = _balanced(items, orders[0], hosts)
        if (bins.host[fits] == UNPLACED).any():
            fuller = _pack(items, orders[0], hosts, best_fit=True)
            # What fits nowhere is shared out more evenly over hosts that are evenly full.
            bins = bins if (fuller.host[fits] == UNPLACED).any() else fuller
        _overcommit(bins, hosts)
        bins.used = hosts
    else:
        limit = max(int(fits.sum()), 1)
        trial = _pack(items, orders[0], limit, best_fit=False)
        tries = [trial]
        # A packing of a large fleet takes seconds, and more orders gain a host in a thousand.
        orders = orders if fits.sum() <= _MANY else orders[:1]
        for order in orders[1:]:
            tries.append(_pack(items, order, trial.used + 1, best_fit=False))
        tries += [_pack(items, order, trial.used + 1, best_fit=True) for order in orders]
        whole = [b for b in tries if not (b.host[fits] == UNPLACED).any()]
        bins = min(whole, key=lambda b: b.used)
        if bins.used > bound:
            _empty_hosts(bins)
        if bins.used > bound and fits.sum() <= _MANY_FOR_MORE:
            bins = _better(items, peak, fits, bins, bound)
    return Placement(bins.host[items.of_vm], bins.used, bound)


def _overcommit(bins: _Bins, hosts: int) -> None:
    """Hosts for items without room: the one with most left, admission and ``apart`` observed."""
    items = bins.items
    left = np.flatnonzero(bins.host == UNPLACED)
    for item in left[np.argsort(-items.profile[left].max(axis=1), kind="stable")].tolist():
        able = bins.reserved + items.reserved[item] <= items.reservable
        for name in items.apart[item]:
            able &= ~bins.names[:, name]
        where = np.flatnonzero(able)
        if where.size and len(set(items.apart[item])) == len(items.apart[item]):
            peak = (bins.load[where] + items.profile[item]).max(axis=1)
            bins.put(item, int(where[np.argmin(peak)]))


def as_measured(fleet: Fleet) -> tuple[Placement, list[str]]:
    """The placement that the data tells of, and the names of its hosts."""
    names = sorted({vm.host for vm in fleet.vms} | {host.name for host in fleet.hosts})
    number = {name: i for i, name in enumerate(names)}
    host = np.array([number[vm.host] for vm in fleet.vms], np.int64)
    return Placement(host, len(names), 0), names
