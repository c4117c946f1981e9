# SPDX-License-Identifier: Apache-2.0
"""One host of a plan: all draws of its unknowns, the limiting hour, and what would help.

``run_host`` is a task: a function of its argument alone, so that it may run on any worker.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from memvirt.size import format_size

from .answer import HostAnswer, Remedy, VmAnswer
from .assumptions import Draw
from .fleet import Fleet
from .policy import PAGE_BYTES, SOFT_PERCENT, HostRules, HostState
from .question import Allow
from .rounds import MECHANISMS, THRASH, HostRun, simulate_host

_PLOT_POINTS = 600
_DATED = 1e8  # seconds: a series that starts later than 1973 has dates


@dataclass(frozen=True)
class HostTask:
    """One host with its VMs, and what is asked of it. ``draws[0]`` is the most hopeful,
    ``draws[1]`` (if there is one) the most pessimistic."""

    name: str
    rules: HostRules
    fleet: Fleet
    draws: tuple[Draw, ...]
    allow: Allow
    advise: bool = True


def fits(run: HostRun, allow: Allow) -> bool:
    """Whether nothing happens in a run that is not allowed."""
    if run.worst is HostState.LOW:
        return False
    taken = (
        run.ballooned.max(initial=0),
        run.compressed.max(initial=0),
        run.swapped.max(initial=0),
    )
    if allow is not Allow.SWAP and run.affected[THRASH].any():
        return False
    worst = max((level + 1 for level, pages in enumerate(taken) if pages >= 1), default=0)
    return worst <= allow


def run_host(task: HostTask) -> tuple[HostAnswer, list[VmAnswer], list[bool]]:
    """All draws of one host: the answers, and in which draws its VMs fit."""
    runs = [simulate_host(task.rules, task.fleet, draw) for draw in task.draws]
    good = [fits(run, task.allow) for run in runs]
    worst = runs[min(1, len(runs) - 1)]
    states = sorted(run.worst for run in runs)
    remedy = None
    if task.advise and not (all(good) and _admitted(task.rules, task.fleet)):
        remedy = _remedy(task)
    free = [float(run.free.min(initial=run.managed)) for run in runs]
    demand = [float(run.demand.max(initial=0)) for run in runs]
    answer = HostAnswer(
        name=task.name,
        memory_mib=_mib(task.rules.managed),
        min_free_mib=_mib(task.rules.min_free),
        vms=len(task.fleet.vms),
        fits=sum(good) / len(good),
        worst_state=(states[0].name.lower(), states[-1].name.lower()),
        lowest_free_mib=(_mib(min(free)), _mib(max(free))),
        peak_demand_mib=(_mib(min(demand)), _mib(max(demand))),
        limiting_hour=time_text(task.fleet, worst.limiting),
        why=_why(task, worst),
        remedy=remedy,
        series=_series(worst) if not all(good) or worst.worst > HostState.HIGH else {},
    )
    return answer, _vm_answers(task, runs), good


def _vm_answers(task: HostTask, runs: list[HostRun]) -> list[VmAnswer]:
    hour = task.fleet.interval / 3600
    on = task.fleet.on().sum(axis=1)
    affected = np.stack([run.affected for run in runs]) * hour
    peak = np.stack([run.peak for run in runs])
    answers = []
    for row, vm in enumerate(task.fleet.vms):
        hours = {
            name: (float(affected[:, m, row].min()), float(affected[:, m, row].max()))
            for m, name in enumerate(MECHANISMS)
        }
        probability = {
            name: float((affected[:, m, row] > 0).mean()) for m, name in enumerate(MECHANISMS)
        }
        most = {
            name: (_mib(float(peak[:, m, row].min())), _mib(float(peak[:, m, row].max())))
            for m, name in enumerate(MECHANISMS)
        }
        answers.append(
            VmAnswer(
                vm.name, task.name, _mib(vm.settings.memory), float(on[row]) * hour, hours,
                probability, most,
            )
        )  # fmt: skip
    return answers


def _mib(pages: float) -> float:
    return pages * PAGE_BYTES / (1 << 20)


def time_text(fleet: Fleet, point: int) -> str:
    """The time of a point: a date if the series has dates, else the time since its start."""
    seconds = fleet.start + point * fleet.interval
    if fleet.points == 1:
        return "the moment of the inventory"
    if seconds >= _DATED:
        return datetime.fromtimestamp(seconds, UTC).strftime("%a %Y-%m-%d %H:%M UTC")
    since = point * fleet.interval
    return (
        f"{since / 3600:.1f} h after the start"
        if since >= 3600
        else f"{since:.2f} s after the start"
    )


def _why(task: HostTask, run: HostRun) -> str:
    """The limiting point in words."""
    point, fleet = run.limiting, task.fleet
    demand, on = float(run.demand[point]), int(fleet.on()[:, point].sum())
    border = task.rules.border(SOFT_PERCENT)
    over = demand + border - run.managed
    text = (
        f"{on} of {len(fleet.vms)} VMs are on and want {format_size(demand * PAGE_BYTES)} with "
        "overhead"
    )
    if over > 0:
        text += (
            f", {format_size(over * PAGE_BYTES)} more than there is if "
            f"{format_size(border * PAGE_BYTES)} stay free ({SOFT_PERCENT} % of minimum free "
            "memory)"
        )
    else:
        text += f"; {format_size(-over * PAGE_BYTES)} more could be used"
    held = _beyond_limits(fleet, task.draws[min(1, len(task.draws) - 1)])
    if held:
        name, pages = max(held.items(), key=lambda item: item[1])
        text += (
            f"; the limit of VM {name} holds it to {format_size(pages * PAGE_BYTES)} less than it "
            "wants"
        )
    draw = task.draws[min(1, len(task.draws) - 1)]
    if point:
        in_use = draw.demand(fleet)[0]
        back = max(point - max(round(3600 / fleet.interval), 1), 0)
        growth = in_use[:, point] - in_use[:, back]
        largest = int(np.argmax(growth))
        if growth[largest] > demand / 50:
            text += (
                f"; VM {fleet.vms[largest].name} grew by "
                f"{format_size(float(growth[largest]) * PAGE_BYTES)} within the hour before"
            )
    return text


def _series(run: HostRun) -> dict[str, list[float]]:
    """The run's series in MiB, thinned for a plot: each point is the worst of its stretch."""
    points = run.demand.size
    starts = np.unique(np.linspace(0, points, min(points, _PLOT_POINTS) + 1).astype(int))[:-1]
    scale = PAGE_BYTES / (1 << 20)

    def most(values: Any) -> list[float]:
        return [round(float(v) * scale, 1) for v in np.maximum.reduceat(values, starts)]

    return {
        "point": [float(start) for start in starts],
        "demand": most(run.demand),
        "free": [round(float(v) * scale, 1) for v in np.minimum.reduceat(run.free, starts)],
        "ballooned": most(run.ballooned),
        "compressed": most(run.compressed),
        "swapped": most(run.swapped),
        "state": [float(v) for v in np.maximum.reduceat(run.state, starts)],
    }


# What would help ------------------------------------------------------------------------------


def memory_step(managed: int) -> int:
    """Pages by which memory is added: a 64th of the host's, as a power of two, like modules."""
    return max(1 << max((managed // 64).bit_length() - 1, 0), 256)


def _admitted(rules: HostRules, fleet: Fleet) -> bool:
    """Whether admission control lets all VMs be powered on."""
    return not rules.refusals((vm.settings, vm.overhead) for vm in fleet.vms)


def _fits_with(task: HostTask, draw: Draw, extra: int) -> bool:
    rules = replace(task.rules, managed=task.rules.managed + extra)
    if not _admitted(rules, task.fleet):
        return False
    return fits(simulate_host(rules, task.fleet, draw), task.allow)


def _memory_without_end(task: HostTask) -> int:
    """Pages that all VMs of a host can never need."""
    return 4 * int(sum(vm.settings.memory + vm.overhead for vm in task.fleet.vms)) + (1 << 20)


def memory_to_add(task: HostTask, draw: Draw) -> int:
    """Fewest steps of memory, in pages, with which the host's VMs fit under ``draw``."""
    step = memory_step(task.rules.managed)
    if _fits_with(task, draw, 0):
        return 0
    high, most = 1, _memory_without_end(task)
    while not _fits_with(task, draw, high * step) and high * step < most:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if _fits_with(task, draw, middle * step):
            high = middle
        else:
            low = middle
    return high * step


def vms_to_remove(task: HostTask, draw: Draw) -> list[str]:
    """Few VMs without which the others fit: the largest at the limiting point, the last of them
    replaced by the smallest that will do."""
    in_use, active = draw.demand(task.fleet)
    point = simulate_host(task.rules, task.fleet, draw).limiting
    order = np.argsort(-in_use[:, point], kind="stable")

    def enough(gone: list[int]) -> bool:
        rest = np.setdiff1d(np.arange(len(task.fleet.vms)), gone)
        if rest.size == 0:
            return True
        demand, fleet = (in_use[rest], active[rest]), task.fleet.select(rest)
        if not _admitted(task.rules, fleet):
            return False
        return fits(simulate_host(task.rules, fleet, draw, demand), task.allow)

    low, high = 0, order.size
    while high - low > 1:
        middle = (low + high) // 2
        if enough(order[:middle].tolist()):
            high = middle
        else:
            low = middle
    gone = order[:high].tolist()
    first, last = high - 1, order.size - 1  # candidates for the last place, by falling size
    while first < last:
        middle = (first + last + 1) // 2
        if enough([*gone[:-1], int(order[middle])]):
            first = middle
        else:
            last = middle - 1
    return [task.fleet.vms[row].name for row in [*gone[:-1], int(order[first])]]


def _beyond_limits(fleet: Fleet, draw: Draw) -> dict[str, float]:
    """VMs that want more than their limits let them have, and how many pages."""
    peaks = draw.demand(fleet)[0].max(axis=1, initial=0)
    return {
        vm.name: float(peak - vm.settings.maximum)
        for vm, peak in zip(fleet.vms, peaks, strict=True)
        if peak - vm.settings.maximum >= 1
    }


def _without_limits(fleet: Fleet, names: dict[str, float]) -> Fleet:
    vms = tuple(
        replace(vm, settings=replace(vm.settings, limit=None)) if vm.name in names else vm
        for vm in fleet.vms
    )
    return replace(fleet, vms=vms)


def _remedy(task: HostTask) -> Remedy:
    hopeful, pessimistic = task.draws[0], task.draws[min(1, len(task.draws) - 1)]
    raised: dict[str, float] = {}
    if not _fits_with(task, pessimistic, _memory_without_end(task)):
        # No memory helps a VM that its own limit holds down.
        raised = _beyond_limits(task.fleet, pessimistic)
        task = replace(task, fleet=_without_limits(task.fleet, raised))
    add = memory_to_add(task, pessimistic)
    least = memory_to_add(task, hopeful) if hopeful != pessimistic else add
    remove = tuple(vms_to_remove(task, pessimistic)) if add else ()
    raised = {name: _mib(pages) for name, pages in raised.items()}
    return Remedy((_mib(least), _mib(add)), remove, raised)
