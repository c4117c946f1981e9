# SPDX-License-Identifier: Apache-2.0
"""Placement keeps every promise, and is never worse than first-fit decreasing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.plan.answer import PlanAnswer
from memvirt.plan.assumptions import Unknowns, best_and_worst
from memvirt.plan.executor import InProcess
from memvirt.plan.fleet import Fleet
from memvirt.plan.generate import generate
from memvirt.plan.hosts import HostTask, memory_to_add, run_host, vms_to_remove
from memvirt.plan.placement import UNPLACED, place
from memvirt.plan.planner import answer
from memvirt.plan.policy import CLEAR_PERCENT, HostRules, MemoryOptions
from memvirt.plan.question import Allow, Question, QuestionError

GIB = 1 << 18
RULES = HostRules(128 * GIB, MemoryOptions())


def quiet(done: int, total: int) -> None:
    pass


def asked(fleet: Fleet, question: Question) -> PlanAnswer:
    return answer(fleet, question, InProcess(), quiet)


def with_rules(fleet: Fleet, seed: int) -> Fleet:
    random = np.random.default_rng(seed)
    vms = []
    for row, vm in enumerate(fleet.vms):
        settings_ = replace(
            vm.settings, reservation=vm.settings.memory // int(random.integers(1, 4))
        )
        apart = f"pair-{row // 2}" if row < 8 else ""
        together = f"app-{row // 3}" if 9 <= row < 15 else ""
        vms.append(replace(vm, settings=settings_, apart=apart, together=together))
    return replace(fleet, vms=tuple(vms))


def first_fit_decreasing(sizes: list[float], capacity: float) -> int:
    """A naive oracle: sizes alone, no time, no rules."""
    bins: list[float] = []
    for size in sorted(sizes, reverse=True):
        for number, used in enumerate(bins):
            if used + size <= capacity:
                bins[number] += size
                break
        else:
            bins.append(size)
    return len(bins)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000), st.sampled_from([None, 5, 12]))
def test_promises(count: int, seed: int, hosts: int | None) -> None:
    fleet = with_rules(generate(count, days=1, interval=3600, seed=seed), seed)
    in_use = fleet.in_use.astype(np.float64)
    found = place(RULES, fleet, in_use, hosts)
    assert found.hosts >= found.bound or hosts is not None
    for number in range(found.hosts):
        vms = [fleet.vms[row] for row in found.on(number)]
        assert sum(vm.settings.reservation + vm.overhead for vm in vms) <= RULES.reservable()
        names = [vm.apart for vm in vms if vm.apart]
        assert len(names) == len(set(names))
        if hosts is None:
            demand = in_use[found.on(number)].sum(axis=0) + sum(vm.overhead for vm in vms)
            assert demand.max() <= RULES.managed - RULES.border(CLEAR_PERCENT) + 1
    for name in {vm.together for vm in fleet.vms} - {""}:
        rows = [row for row, vm in enumerate(fleet.vms) if vm.together == name]
        assert len({int(found.host[row]) for row in rows}) == 1


@settings(max_examples=15, deadline=None)
@given(st.integers(5, 120), st.integers(0, 1000))
def test_never_worse_than_first_fit_decreasing(count: int, seed: int) -> None:
    fleet = generate(count, days=1, interval=3600, seed=seed)
    in_use = fleet.in_use.astype(np.float64)
    found = place(RULES, fleet, in_use)
    sizes = [float(row.max()) + vm.overhead for row, vm in zip(in_use, fleet.vms, strict=True)]
    assert found.bound <= found.hosts
    assert found.hosts <= first_fit_decreasing(sizes, RULES.managed - RULES.border(CLEAR_PERCENT))
    assert not (found.host == UNPLACED).any()


def test_vms_that_peak_at_different_hours_share_a_host() -> None:
    fleet = generate(2, days=1, interval=3600)
    vms = tuple(replace(vm, settings=replace(vm.settings, memory=128 * GIB)) for vm in fleet.vms)
    day, night = np.zeros(24), np.zeros(24)
    day[8:18], night[20:], night[:6] = 80 * GIB, 80 * GIB, 80 * GIB
    in_use = np.stack((day, night)) + 10 * GIB
    fleet = replace(fleet, vms=vms, in_use=in_use.astype(np.float32))
    assert place(RULES, fleet, in_use).hosts == 1


def test_a_vm_larger_than_any_host_is_refused() -> None:
    fleet = generate(3, days=1, interval=3600)
    in_use = fleet.in_use.astype(np.float64).copy()
    in_use[1] = 500 * GIB
    large = replace(fleet.vms[1], settings=replace(fleet.vms[1].settings, memory=512 * GIB))
    vms = (fleet.vms[0], large, fleet.vms[2])
    fleet = replace(fleet, vms=vms, in_use=in_use.astype(np.float32))
    found = asked(fleet, Question(host_memory=128 * GIB, fit=True))
    assert list(found.refused) == [fleet.vms[1].name]
    assert found.fits == 0


def test_memory_to_add_and_vms_to_remove_are_enough_and_not_too_much() -> None:
    fleet = generate(60, days=1, interval=900)
    _, worst = best_and_worst(Unknowns())
    task = HostTask("host", HostRules(300 * GIB, MemoryOptions()), fleet, (worst,), Allow.NONE)
    add = memory_to_add(task, worst)
    step = 4 * GIB
    for extra, good in ((add, True), (add - step, False)):
        rules = HostRules(300 * GIB + extra, MemoryOptions())
        assert (run_host(replace(task, rules=rules))[0].fits == 1) is good
    gone = set(vms_to_remove(task, worst))
    rest = [row for row, vm in enumerate(fleet.vms) if vm.name not in gone]
    assert run_host(replace(task, fleet=fleet.select(rest)))[0].fits == 1
    for name in gone:
        back = sorted([*rest, next(r for r, vm in enumerate(fleet.vms) if vm.name == name)])
        assert run_host(replace(task, fleet=fleet.select(back)))[0].fits < 1 or len(gone) > 1


def test_what_fits_survives_a_failure_only_with_room() -> None:
    fleet = generate(60, days=1, interval=900)
    without = asked(fleet, Question(host_memory=128 * GIB, fit=True))
    bearing = asked(fleet, Question(host_memory=128 * GIB, fit=True, failover=1))
    assert without.fits == bearing.fits == 1
    assert bearing.failover is not None
    assert bearing.failover.fits
    assert len(bearing.hosts) > len(without.hosts)
    assert sum(host.vms for host in bearing.hosts) == 60


def test_an_answer_is_the_same_twice_and_lists_every_vm() -> None:
    fleet = generate(40, days=1, interval=900)
    question = Question(host_memory=200 * GIB, hosts=2, draws=6, seed=3, allow=Allow.BALLOON)
    first, second = asked(fleet, question), asked(fleet, question)
    assert first.as_json() == second.as_json()
    assert sorted(vm.name for vm in first.vms) == sorted(vm.name for vm in fleet.vms)
    for vm in first.vms:
        for name, (low, high) in vm.hours.items():
            assert 0 <= low <= high <= vm.hours_on + 1e-9
            assert (vm.probability[name] > 0) == (high > 0)


def test_what_ifs_go_the_right_way() -> None:
    fleet = generate(60, days=1, interval=900)
    base = Question(host_memory=340 * GIB, draws=4)
    tight = asked(fleet, base)
    roomy = asked(fleet, replace(base, extra_memory=128 * GIB))
    grown = asked(fleet, replace(base, grow=0.5))
    assert tight.fits == 0
    assert roomy.fits == 1
    assert grown.hosts[0].peak_demand_mib[0] > 1.4 * tight.hosts[0].peak_demand_mib[0]
    assert max(vm.hours["balloon"][1] for vm in grown.vms) >= max(
        vm.hours["balloon"][1] for vm in tight.vms
    )


@pytest.mark.parametrize(
    "question",
    [Question(fit=True), Question(hosts=3), Question(host_memory=1 << 20, hosts=2, fit=True)],
)
def test_questions_that_contradict_themselves(question: Question) -> None:
    with pytest.raises(QuestionError):
        asked(generate(3, days=1, interval=3600), question)
