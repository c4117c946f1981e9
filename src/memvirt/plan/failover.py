# SPDX-License-Identifier: Apache-2.0
"""What happens when hosts die: their VMs are restarted on the others, and the policy goes on.

Each host is tried as the first to die, and after the worst of them each as the next. VMs are
restarted largest first, each on the host of its cluster that then has most memory left and can
admit it (as high-availability clusters do: reservations decide where a VM may start, not its use).
VMs that must share a host are restarted on one host, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from .answer import FailoverAnswer
from .assumptions import Draw
from .executor import Executor
from .fleet import Fleet
from .hosts import fits
from .placement import UNPLACED, Hosts, Placement, demand_profile
from .policy import SOFT_PERCENT, HostRules, HostState
from .question import Allow
from .rounds import Pages, simulate_host


@dataclass(frozen=True)
class FailoverTask:
    """The hosts that are short of memory, or hold a VM to its limit, after one host has died."""

    hosts: tuple[tuple[HostRules, Fleet], ...]
    draw: Draw
    allow: Allow


def run_failover(task: FailoverTask) -> tuple[HostState, bool]:
    """The worst state of these hosts, and whether their VMs fit. A task: a function of its
    argument alone."""
    worst, good = HostState.HIGH, True
    for rules, fleet in task.hosts:
        run = simulate_host(rules, fleet, task.draw)
        worst, good = max(worst, run.worst), good and fits(run, task.allow)
    return worst, good


@dataclass(frozen=True)
class _Restarted:
    """Where VMs are after a host has died. ``missing``: pages of demand without room, a measure of
    how bad it is."""

    host: Hosts
    not_restarted: tuple[int, ...]
    changed: tuple[int, ...]
    missing: float


@dataclass(frozen=True)
class _Cluster:
    """Hosts with what they hold. ``load`` has shape (hosts, periods), in pages."""

    fleet: Fleet
    rules: list[HostRules]
    names: list[str]
    profile: Pages  # of each VM: shape (VMs, periods)
    reserved: Pages
    limited: Any  # VMs that need more than their limit
    host: Hosts
    load: Pages
    promised: Pages
    dead: tuple[int, ...] = ()

    def restarted(self, victim: int) -> _Restarted:
        """Restart the VMs of ``victim`` on the other hosts."""
        host, load, promised = self.host.copy(), self.load.copy(), self.promised.copy()
        gone = [*self.dead, victim]
        alive = np.array([name == self.names[victim] for name in self.names])
        alive[gone] = False
        apart = self._apart(alive)
        changed, lost = set(), []
        managed = np.array([rules.managed for rules in self.rules], np.float64)
        room = np.array([rules.reservable() for rules in self.rules], np.float64)
        for unit in self._units(victim):
            demand, reserved = self.profile[unit].sum(axis=0), float(self.reserved[unit].sum())
            able = alive & (promised + reserved <= room)
            names = [self.fleet.vms[row].apart for row in unit if self.fleet.vms[row].apart]
            for name in names:
                able[list(apart.get(name, ()))] = False
            where = np.flatnonzero(able)
            if not where.size:
                host[unit] = UNPLACED
                lost += unit
                continue
            left = managed[where] - (load[where] + demand).max(axis=1)
            best = int(where[np.argmax(left)])
            host[unit] = best
            load[best] += demand
            promised[best] += reserved
            for name in names:
                apart.setdefault(name, set()).add(best)
            changed.add(best)
        over = [
            float(load[h].max(initial=0)) + self.rules[h].border(SOFT_PERCENT) - managed[h]
            for h in changed
        ]
        return _Restarted(
            host, tuple(lost), tuple(sorted(changed)), sum(max(pages, 0.0) for pages in over)
        )

    def _apart(self, alive: Any) -> dict[str, set[int]]:
        """The hosts alive that hold a VM of each ``apart`` name."""
        found: dict[str, set[int]] = {}
        for row, vm in enumerate(self.fleet.vms):
            if vm.apart and self.host[row] != UNPLACED and alive[self.host[row]]:
                found.setdefault(vm.apart, set()).add(int(self.host[row]))
        return found

    def _units(self, victim: int) -> list[list[int]]:
        """VMs of a host by falling demand, those that must stay together as one."""
        units: dict[str, list[int]] = {}
        for row in np.flatnonzero(self.host == victim).tolist():
            together = self.fleet.vms[row].together
            units.setdefault(f"together {together}" if together else f"vm {row}", []).append(row)
        return sorted(units.values(), key=lambda unit: -float(self.profile[unit].sum(axis=0).max()))

    def task(self, victim: int, draw: Draw, allow: Allow) -> FailoverTask:
        """What must be simulated to know what the death of ``victim`` does: only hosts that leave
        state high, or hold VMs to limits."""
        after = self.restarted(victim)
        hosts = []
        for h in after.changed:
            members = np.flatnonzero(after.host == h)
            rules = self.rules[h]
            peak = float(self.profile[members].sum(axis=0).max(initial=0))
            if rules.managed - peak < rules.high_border or self.limited[members].any():
                hosts.append((rules, self.fleet.select(members)))
        return FailoverTask(tuple(hosts), draw, allow)

    def without(self, victim: int) -> _Cluster:
        """The cluster after ``victim`` has died."""
        host = self.restarted(victim).host
        load, promised = _loads(host, self.profile, self.reserved, len(self.rules))
        return replace(self, host=host, load=load, promised=promised, dead=(*self.dead, victim))


class _Tasks(Sequence[FailoverTask]):
    """Tasks made when they are asked for: all at once would be many times the fleet."""

    def __init__(self, cluster: _Cluster, victims: list[int], draw: Draw, allow: Allow) -> None:
        self._of = cluster, draw, allow
        self._victims = victims

    def __len__(self) -> int:
        return len(self._victims)

    @overload
    def __getitem__(self, number: int) -> FailoverTask: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[FailoverTask]: ...
    def __getitem__(self, number: int | slice) -> FailoverTask | Sequence[FailoverTask]:
        cluster, draw, allow = self._of
        if isinstance(number, slice):
            return _Tasks(cluster, self._victims[number], draw, allow)
        return cluster.task(self._victims[number], draw, allow)


def _loads(host: Hosts, profile: Pages, reserved: Pages, hosts: int) -> tuple[Pages, Pages]:
    """Demand and promised memory of each host."""
    load, promised = np.zeros((hosts, profile.shape[1])), np.zeros(hosts)
    placed = host != UNPLACED
    np.add.at(load, host[placed], profile[placed])
    np.add.at(promised, host[placed], reserved[placed])
    return load, promised


def worst_failover(
    fleet: Fleet, placement: Placement, rules: list[HostRules], names: list[str],
    clusters: list[str], draw: Draw, failures: int, allow: Allow, executor: Executor,
) -> FailoverAnswer:  # fmt: skip
    """The worst of all single failures, then the worst after that, ``failures`` times.

    ``clusters``: of each host; VMs are restarted inside their own.
    """
    in_use, _ = draw.demand(fleet)
    profile = demand_profile(fleet, in_use, draw.shared)
    reserved = np.array([vm.settings.reservation + vm.overhead for vm in fleet.vms], np.float64)
    maximum = np.array([vm.settings.maximum for vm in fleet.vms], np.float64)
    limited = np.asarray(in_use.max(axis=1, initial=0) > maximum)
    load, promised = _loads(placement.host, profile, reserved, len(rules))
    cluster = _Cluster(
        fleet, rules, clusters, profile, reserved, limited, placement.host, load, promised
    )
    lost: tuple[int, ...] = ()
    state, good = HostState.HIGH, True
    for _ in range(failures):
        victims = [
            h for h in range(len(rules)) if h not in cluster.dead and (cluster.host == h).any()
        ]
        if not victims:
            break
        found = executor.map(
            run_failover, _Tasks(cluster, victims, draw, allow), lambda done, total: None
        )
        after = [cluster.restarted(victim) for victim in victims]
        worst = max(
            range(len(victims)),
            key=lambda n: (len(after[n].not_restarted), found[n][0], after[n].missing),
        )
        state, good = found[worst][0], good and found[worst][1]
        lost += after[worst].not_restarted
        cluster = cluster.without(victims[worst])
    died = " and ".join(names[h] for h in cluster.dead)
    if lost:
        detail = f"{len(lost)} VM{'s' * (len(lost) != 1)} could not be restarted"
    elif good:
        detail = "all VMs are restarted and fit"
    else:
        detail = (
            "all VMs are restarted, but hosts then take memory from VMs "
            f"(worst state {state.name.lower()})"
        )
    fails = "fails" if len(cluster.dead) == 1 else "fail"
    return FailoverAnswer(
        failures, good and not lost, died, state.name.lower(),
        tuple(fleet.vms[row].name for row in lost), f"{died} {fails}: {detail}",
    )  # fmt: skip
