# SPDX-License-Identifier: Apache-2.0
"""What happens when hosts die: their VMs are restarted on the others, and the policy goes on.

Each host is tried as the first to die, and after the worst of them each as the next. VMs are
restarted largest first, each on the host that then has most memory left and can admit it (as
high-availability clusters do: reservations decide where a VM may start, not its use).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .answer import FailoverAnswer
from .assumptions import Draw
from .executor import Executor
from .fleet import Fleet
from .hosts import fits
from .placement import UNPLACED, Hosts, Placement
from .policy import SOFT_PERCENT, HostRules, HostState
from .question import Allow
from .rounds import simulate_host


@dataclass(frozen=True)
class FailoverTask:
    """One host to die of those alive, under the most pessimistic draw."""

    fleet: Fleet
    host: Hosts
    rules: tuple[HostRules, ...]
    dead: tuple[int, ...]
    victim: int
    draw: Draw
    allow: Allow


@dataclass(frozen=True)
class FailoverCase:
    """What became of it. ``missing``: pages of demand without room, a measure of how bad it is."""

    victim: int
    host: Hosts
    not_restarted: tuple[int, ...]
    worst: HostState
    fits: bool
    missing: float

    @property
    def badness(self) -> tuple[int, int, float]:
        return len(self.not_restarted), int(self.worst), self.missing


def run_failover(task: FailoverTask) -> FailoverCase:
    """Let ``victim`` die. A task: a function of its argument alone."""
    fleet, host = task.fleet, task.host.copy()
    in_use, active = task.draw.demand(fleet)
    maximum = np.array([vm.settings.maximum for vm in fleet.vms], np.float64)[:, None]
    overhead = np.array([vm.overhead for vm in fleet.vms])
    demand = np.minimum(in_use, maximum) + overhead[:, None] * fleet.on()
    reserved = np.array([vm.settings.reservation for vm in fleet.vms]) + overhead
    alive = [h for h in range(len(task.rules)) if h != task.victim and h not in task.dead]
    load = {h: demand[host == h].sum(axis=0) for h in alive}
    promised = {h: float(reserved[host == h].sum()) for h in alive}
    apart = {h: {fleet.vms[row].apart for row in np.flatnonzero(host == h)} for h in alive}
    displaced = np.flatnonzero(host == task.victim)
    displaced = displaced[np.argsort(-demand[displaced].max(axis=1), kind="stable")]
    host[displaced] = UNPLACED
    changed = set()
    for row in displaced.tolist():
        vm = fleet.vms[row]
        able = [
            h for h in alive
            if promised[h] + reserved[row] <= task.rules[h].reservable()
            and (not vm.apart or vm.apart not in apart[h])
        ]  # fmt: skip
        if not able:
            continue
        best = max(able, key=lambda h: task.rules[h].managed - float((load[h] + demand[row]).max()))
        host[row] = best
        load[best] = load[best] + demand[row]
        promised[best] += reserved[row]
        apart[best].add(vm.apart)
        changed.add(best)
    worst, good, missing = HostState.HIGH, True, 0.0
    for h in sorted(changed):
        rules, members = task.rules[h], np.flatnonzero(host == h)
        over = float(load[h].max(initial=0)) + rules.border(SOFT_PERCENT) - rules.managed
        missing += max(over, 0.0)
        run = simulate_host(
            rules, fleet.select(members), task.draw, (in_use[members], active[members])
        )
        worst, good = max(worst, run.worst), good and fits(run, task.allow)
    lost = tuple(row for row in displaced.tolist() if host[row] == UNPLACED)
    return FailoverCase(task.victim, host, lost, worst, good and not lost, missing)


def worst_failover(
    fleet: Fleet, placement: Placement, rules: list[HostRules], names: list[str], draw: Draw,
    failures: int, allow: Allow, executor: Executor,
) -> FailoverAnswer:  # fmt: skip
    """The worst of all single failures, then the worst after that, ``failures`` times."""
    host, dead = placement.host, ()  # type: tuple[Hosts, tuple[int, ...]]
    lost: tuple[int, ...] = ()
    case: FailoverCase | None = None
    for _ in range(failures):
        tasks = [
            FailoverTask(fleet, host, tuple(rules), dead, victim, draw, allow)
            for victim in range(len(rules))
            if victim not in dead and (host == victim).any()
        ]
        cases = executor.map(run_failover, tasks, lambda done, total: None)
        if not cases:
            break
        case = max(cases, key=lambda c: c.badness)
        host, dead, lost = case.host, (*dead, case.victim), lost + case.not_restarted
    assert case is not None
    died = " and ".join(names[h] for h in dead)
    good = case.fits and not lost
    if lost:
        detail = f"{len(lost)} VMs could not be restarted"
    elif good:
        detail = "all VMs are restarted and fit"
    else:
        detail = f"all VMs are restarted, but a host reaches state {case.worst.name.lower()}"
    return FailoverAnswer(
        failures, good, died, case.worst.name.lower(),
        tuple(fleet.vms[row].name for row in lost), f"{died} fails: {detail}",
    )  # fmt: skip
