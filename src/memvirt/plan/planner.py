# SPDX-License-Identifier: Apache-2.0
"""Answers a question about a fleet: places VMs, runs the policy on every host, sums up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from memvirt.size import format_size

from .answer import FailoverAnswer, HostAnswer, PlanAnswer, VmAnswer
from .assumptions import Draw, Unknowns, draws
from .executor import Executor, Progress
from .failover import worst_failover
from .findings import PlanDataError
from .fleet import UNKNOWN, Fleet, PlannedVm
from .hosts import HostTask, run_host
from .placement import UNPLACED, Placement, as_measured, lower_bound, place
from .policy import PAGE_BYTES, HostRules, VmSettings
from .question import Allow, Question, QuestionError

__all__ = ["answer"]

_WITHOUT = {
    Allow.NONE: "without taking memory from VMs",
    Allow.BALLOON: "without compressing or swapping",
    Allow.COMPRESS: "without swapping",
    Allow.SWAP: "at all",
}


@dataclass(frozen=True)
class _Laid:
    """A fleet on hosts: what is to be run."""

    fleet: Fleet
    placement: Placement
    rules: list[HostRules]
    names: list[str]
    clusters: list[str]  # of each host


def answer(
    fleet: Fleet, question: Question, executor: Executor, progress: Progress, label: str = ""
) -> PlanAnswer:
    """Raises QuestionError or PlanDataError for what cannot be answered."""
    question.check()
    fleet = changed(fleet, question)
    sample = tuple(draws(_relevant(fleet, question), question.draws, question.seed))
    worst = sample[min(1, len(sample) - 1)]
    laid, failover = _lay(fleet, question, worst, executor), None
    if question.failover:
        laid, failover = _with_failover(laid, fleet, question, worst, executor)
    tasks = []
    for number, name in enumerate(laid.names):
        members = laid.placement.on(number)
        if members.size:
            chosen = fleet.select(members)
            tasks.append(HostTask(name, laid.rules[number], chosen, sample, question.allow))
    results = executor.map(run_host, tasks, progress)
    hosts = tuple(host for host, _, _ in results)
    vms = tuple(vm for _, found, _ in results for vm in found)
    refused = _refused(laid)
    good = np.array([good for _, _, good in results], bool).reshape(-1, len(sample))
    fitting = float(good.all(axis=0).mean()) if not refused else 0.0
    if failover is not None and not failover.fits:
        fitting = 0.0
    return PlanAnswer(
        question=label or describe(question, laid.names),
        verdict=_verdict(fitting, hosts, refused, failover, question.allow),
        fits=fitting,
        hosts=hosts,
        vms=vms,
        refused=refused,
        fewest_hosts=(laid.placement.bound, laid.placement.hosts) if question.fit else None,
        failover=failover,
        assumptions=assumptions(fleet, question),
        draws=len(sample),
        seed=question.seed,
        start=fleet.start,
        interval_s=fleet.interval,
        points=fleet.points,
        findings=fleet.findings,
    )


def changed(fleet: Fleet, question: Question) -> Fleet:
    """The fleet as the question supposes it: grown, without balloons."""
    if question.grow == 0 and question.balloons:
        return fleet
    factor = 1 + question.grow

    def grown(settings: VmSettings) -> VmSettings:
        limit = None if settings.limit is None else round(settings.limit * factor)
        return replace(
            settings, memory=round(settings.memory * factor),
            reservation=round(settings.reservation * factor), limit=limit,
            shares=max(round(settings.shares * factor), 1),
        )  # fmt: skip

    vms: list[PlannedVm] = [
        replace(vm, settings=grown(vm.settings), driver=vm.driver and question.balloons)
        for vm in fleet.vms
    ]
    scale = np.float32(factor)
    in_use = np.where(fleet.in_use == UNKNOWN, UNKNOWN, fleet.in_use * scale).astype(np.float32)
    active = np.where(fleet.active == UNKNOWN, UNKNOWN, fleet.active * scale).astype(np.float32)
    return replace(fleet, vms=tuple(vms), in_use=in_use, active=active)


def _relevant(fleet: Fleet, question: Question) -> Unknowns:
    """The unknowns that are unknown in this fleet; for what is measured one value will do."""
    unknowns = question.unknowns
    if not (fleet.in_use == UNKNOWN).any():
        unknowns = replace(unknowns, in_use=replace(unknowns.in_use, low=unknowns.in_use.high))
    if not (fleet.active == UNKNOWN).any():
        unknowns = replace(unknowns, active=replace(unknowns.active, low=unknowns.active.high))
    return unknowns


def assumptions(fleet: Fleet, question: Question) -> dict[str, str]:
    """What the answer rests on beside the data, in words."""
    unknowns = question.unknowns
    out = {}
    no_use = float((fleet.in_use == UNKNOWN).any(axis=1).mean())
    no_activity = float((fleet.active == UNKNOWN).any(axis=1).mean())
    if no_use:
        out["memory in use"] = (
            f"not measured for {no_use:.0%} of the VMs: {unknowns.in_use} of the way from active "
            "to configured memory"
        )
    if no_activity:
        out["active memory"] = (
            f"not measured for {no_activity:.0%} of the VMs: {unknowns.active} of that in use"
        )
    out["compressible pages"] = f"{unknowns.compressible} shrink to a half"
    if unknowns.shared.high:
        out["page sharing"] = f"saves {unknowns.shared} of memory in use while memory is short"
    else:
        out["page sharing"] = "saves nothing (off)"
    if question.balloons:
        out["balloon drivers"] = "in every VM, unless the data says otherwise"
    else:
        out["balloon drivers"] = "in no VM"
    out["bursts"] = "shorter than the interval of the series are not seen"
    return out


def _host_rules(pages: float, question: Question) -> HostRules:
    managed = int(pages) + question.extra_memory
    if managed < 1024:
        raise QuestionError(f"a host of {format_size(managed * PAGE_BYTES)} runs no VM")
    return HostRules(managed, question.options)


def _lay(fleet: Fleet, question: Question, worst: Draw, executor: Executor) -> _Laid:
    if question.host_memory is None:
        placement, names = as_measured(fleet)
        sizes = {host.name: host.memory for host in fleet.hosts}
        cluster = {host.name: host.cluster for host in fleet.hosts}
        missing = [name for name in names if name not in sizes]
        if missing:
            which = f"of host {missing[0]}" if missing[0] else "of the VMs' host"
            raise PlanDataError(
                f"the data does not tell the memory {which}; name one with --host 512G"
            )
        all_rules = [_host_rules(sizes[name], question) for name in names]
        return _Laid(fleet, placement, all_rules, names, [cluster[name] for name in names])
    rules = _host_rules(question.host_memory, question)
    if question.hosts is None and not question.fit:
        placement = Placement(np.zeros(len(fleet.vms), np.int64), 1, 0)
        return _Laid(fleet, placement, [rules], ["host"], [""])
    in_use, _ = worst.demand(fleet)
    placement = place(rules, fleet, in_use, question.hosts, shared=worst.shared)
    if question.fit and question.allow is not Allow.NONE:
        placement = _fewest(fleet, rules, placement, worst, question.allow, executor)
    width = len(str(placement.hosts))
    names = [f"host-{number:0{width}}" for number in range(1, placement.hosts + 1)]
    return _Laid(fleet, placement, [rules] * placement.hosts, names, [""] * placement.hosts)


def _fewest(
    fleet: Fleet, rules: HostRules, enough: Placement, worst: Draw, allow: Allow,
    executor: Executor,
) -> Placement:  # fmt: skip
    """The fewest hosts on which no more happens to VMs than ``allow``, between a bound and
    ``enough``, on which nothing happens. More hosts are taken to be never worse."""
    in_use, active = worst.demand(fleet)
    bound = lower_bound(rules, fleet, in_use, shared=worst.shared, active=active, allow=allow)
    placed = enough.host != UNPLACED
    low, found = bound, enough
    while low < found.hosts:
        middle = (low + found.hosts) // 2
        trial = place(rules, fleet, in_use, middle, shared=worst.shared)
        members = [trial.on(number) for number in range(middle)]
        tasks = [
            HostTask("", rules, fleet.select(rows), (worst,), allow, advise=False)
            for rows in members if rows.size
        ]  # fmt: skip
        good = not (trial.host[placed] == UNPLACED).any() and all(
            host.fits == 1 for host, _, _ in executor.map(run_host, tasks, lambda done, total: None)
        )
        if good:
            found = trial
        else:
            low = middle + 1
    return replace(found, bound=bound)


def _refused(laid: _Laid) -> dict[str, str]:
    """VMs that cannot be powered on, and why."""
    refused = {}
    for row in np.flatnonzero(laid.placement.host == UNPLACED):
        vm = laid.fleet.vms[row]
        refused[vm.name] = "no host has room for it under reservations and rules of placement"
    for number, rules in enumerate(laid.rules):
        vms = [laid.fleet.vms[row] for row in laid.placement.on(number)]
        why = rules.refusals((vm.settings, vm.overhead) for vm in vms)
        refused |= {
            name: text.removeprefix(f"VM {name} cannot be powered on: ")
            for name, text in why.items()
        }
    return refused


def _failover(laid: _Laid, question: Question, worst: Draw, executor: Executor) -> FailoverAnswer:
    if len(laid.names) <= question.failover:
        raise QuestionError(
            f"--failover {question.failover}: there are only {len(laid.names)} hosts; "
            "ask with --hosts or --fit"
        )
    return worst_failover(
        laid.fleet, laid.placement, laid.rules, laid.names, laid.clusters, worst,
        question.failover, question.allow, executor,
    )  # fmt: skip


def _with_failover(
    laid: _Laid, fleet: Fleet, question: Question, worst: Draw, executor: Executor
) -> tuple[_Laid, FailoverAnswer]:
    """What failures do; if the number of hosts is free, with as many as can bear them."""
    bound, fewest = laid.placement.bound, laid.placement.hosts
    if not question.fit:
        return laid, _failover(laid, question, worst, executor)
    for hosts in range(max(fewest, question.failover + 1), 2 * fewest + question.failover + 1):
        laid = _lay(fleet, replace(question, fit=False, hosts=hosts), worst, executor)
        laid = replace(laid, placement=replace(laid.placement, bound=bound))
        found = _failover(laid, question, worst, executor)
        if found.fits:
            break
    return laid, found


def describe(question: Question, names: list[str]) -> str:
    """The question in words."""
    if question.host_memory is None:
        where = f"the {len(names)} hosts as they are" if len(names) > 1 else f"host {names[0]}"
    else:
        size = format_size((question.host_memory + question.extra_memory) * PAGE_BYTES)
        if question.fit:
            where = f"as few hosts of {size} as can be found"
        elif question.hosts is not None:
            where = f"{question.hosts} hosts of {size}"
        else:
            where = f"one host of {size}"
    text = f"Do the VMs fit {where}"
    if question.grow:
        text += f", grown by {question.grow:.0%}"
    if question.failover:
        text += f", also when {question.failover} of them fail{'s' * (question.failover == 1)}"
    return text + "?"


def _verdict(
    fitting: float, hosts: tuple[HostAnswer, ...], refused: dict[str, str],
    failover: FailoverAnswer | None, allow: Allow,
) -> str:  # fmt: skip
    if refused:
        return f"no: {len(refused)} VM{'s' * (len(refused) != 1)} cannot be powered on"
    bad = [host for host in hosts if host.fits < 1]
    if not bad:
        if failover is not None and not failover.fits:
            fails = "fail" if " and " in failover.worst_host else "fails"
            return f"no: they fit, but not when {failover.worst_host} {fails}"
        return "yes"
    never = [host for host in bad if host.fits == 0]
    which = f"{len(bad)} of {len(hosts)} hosts" if len(hosts) > 1 else "the host"
    if never:
        return f"no: {which} cannot hold them {_WITHOUT[allow]}"
    return (
        f"it depends: {which} can hold them in {fitting:.0%} of the draws of what was not measured"
    )


def touched(vms: tuple[VmAnswer, ...]) -> list[VmAnswer]:
    """VMs that something is taken from, the worst first."""
    found = [vm for vm in vms if vm.touched]
    return sorted(
        found,
        key=lambda vm: (
            *(-vm.hours[m][1] for m in ("thrash", "swap", "compress", "balloon")),
            -max(most for _, most in vm.peak_mib.values()),
        ),
    )
