# SPDX-License-Identifier: Apache-2.0
"""Restarts after a failure keep every promise of placement; limits are told from lack of memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.plan.answer import PlanAnswer
from memvirt.plan.assumptions import Unknowns, best_and_worst
from memvirt.plan.executor import InProcess
from memvirt.plan.failover import _Cluster, _loads
from memvirt.plan.fleet import Fleet
from memvirt.plan.generate import generate
from memvirt.plan.hosts import HostTask, run_host
from memvirt.plan.placement import UNPLACED, demand_profile, place
from memvirt.plan.planner import answer
from memvirt.plan.policy import HostRules, MemoryOptions
from memvirt.plan.question import Allow, Question
from memvirt.plan.report_html import advice

GIB = 1 << 18
RULES = HostRules(128 * GIB, MemoryOptions())
_, WORST = best_and_worst(Unknowns())


def asked(fleet: Fleet, question: Question) -> PlanAnswer:
    return answer(fleet, question, InProcess(), lambda done, total: None)


def sized(*mib: int, **more: object) -> Fleet:
    """VMs of one moment that use all of their memory."""
    fleet = generate(len(mib), days=1 / 24, interval=3600)
    vms = tuple(
        replace(vm, overhead=0.0, settings=replace(vm.settings, memory=size * 256, **more))
        for vm, size in zip(fleet.vms, mib, strict=True)
    )
    in_use = np.array(mib, np.float32)[:, None] * 256
    return replace(fleet, vms=vms, in_use=in_use, active=in_use / 16)


def cluster(fleet: Fleet, hosts: int) -> _Cluster:
    in_use, _ = WORST.demand(fleet)
    placed = place(RULES, fleet, in_use, hosts)
    profile = demand_profile(fleet, in_use)
    reserved = np.array([vm.settings.reservation + vm.overhead for vm in fleet.vms], float)
    load, promised = _loads(placed.host, profile, reserved, hosts)
    never = np.zeros(len(fleet.vms), bool)
    names = [f"c{number % 2}" for number in range(hosts)]
    return _Cluster(
        fleet, [RULES] * hosts, names, profile, reserved, never, placed.host, load, promised
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 60), st.integers(0, 1000), st.sampled_from([4, 6, 9]))
def test_promises_after_a_failure(count: int, seed: int, hosts: int) -> None:
    fleet = generate(count, days=1, interval=3600, seed=seed)
    vms = tuple(
        replace(
            vm, apart=f"pair-{row // 2}" if row < 6 else "",
            together=f"app-{row % 3}" if row >= 6 else "",
            settings=replace(vm.settings, reservation=vm.settings.memory // 2),
        )
        for row, vm in enumerate(fleet.vms)
    )  # fmt: skip
    before = cluster(replace(fleet, vms=vms), hosts)
    for victim in range(hosts):
        after = before.restarted(victim)
        stayed = before.host != victim
        assert (after.host[stayed] == before.host[stayed]).all()
        moved = after.host[(before.host == victim) & (after.host != UNPLACED)]
        assert not (moved == victim).any()
        assert all(before.names[to] == before.names[victim] for to in moved)
        for number in range(hosts):
            rows = np.flatnonzero(after.host == number)
            apart = [vms[row].apart for row in rows if vms[row].apart]
            assert len(apart) == len(set(apart))
            assert before.reserved[rows].sum() <= RULES.reservable() + 1e-6
        for name in {vm.together for vm in vms} - {""}:
            group = [row for row, vm in enumerate(vms) if vm.together == name]
            if len({int(before.host[row]) for row in group}) == 1:
                assert len({int(after.host[row]) for row in group}) == 1


def test_failures_are_a_chain_that_moves_vms_on() -> None:
    fleet = sized(*[40 * 1024] * 6)
    four = asked(fleet, Question(host_memory=128 * GIB, hosts=4, failover=2))
    assert four.failover is not None
    assert four.failover.fits  # six of 40 GiB: three on each of two hosts of 128
    assert len(four.failover.worst_host.split(" and ")) == 2
    five = asked(fleet, Question(host_memory=128 * GIB, hosts=4, failover=3))
    assert five.failover is not None
    assert not five.failover.fits


def test_no_memory_is_advised_for_a_vm_that_its_limit_holds() -> None:
    fleet = sized(8192, 8192, limit=4096 * 256)
    task = HostTask("host", RULES, fleet, (WORST,), Allow.NONE)
    host, _, _ = run_host(task)
    assert host.fits == 0
    assert host.remedy is not None
    assert host.remedy.add_mib == (0, 0)
    assert host.remedy.remove == ()
    assert set(host.remedy.raise_limits_mib.values()) == {4096}
    assert "limit of VM" in host.why
    assert advice(host).startswith("Raise the limit of ")
    raised = tuple(replace(vm, settings=replace(vm.settings, limit=None)) for vm in fleet.vms)
    assert run_host(replace(task, fleet=replace(fleet, vms=raised)))[0].fits == 1


def test_advice_counts_admission() -> None:
    fleet = sized(8192, 8192, 8192, reservation=8192 * 256)
    idle = replace(fleet, in_use=fleet.in_use / 64, active=fleet.active / 64)
    rules = HostRules(20 * GIB, MemoryOptions())
    task = HostTask("host", rules, idle, (WORST,), Allow.SWAP)
    remedy = run_host(task)[0].remedy
    assert remedy is not None
    more = HostRules(rules.managed + round(remedy.add_mib[1] * 256), MemoryOptions())
    refused = more.refusals((vm.settings, vm.overhead) for vm in idle.vms)
    assert not refused
    assert len(remedy.remove) == 1


@pytest.mark.parametrize("allow", list(Allow))
def test_fewest_hosts_by_what_is_allowed(allow: Allow) -> None:
    fleet = sized(*[16 * 1024] * 32)  # 512 GiB, one part in sixteen active
    found = asked(fleet, Question(host_memory=128 * GIB, fit=True, allow=allow, draws=2))
    assert found.fits == 1
    assert found.fewest_hosts is not None
    bound, hosts = found.fewest_hosts
    assert bound <= hosts
    assert hosts == len(found.hosts)
    if allow in (Allow.BALLOON, Allow.COMPRESS):
        busy = replace(fleet, active=fleet.in_use)  # nothing may be taken
        found = asked(busy, Question(host_memory=128 * GIB, fit=True, allow=allow, draws=2))
        assert found.fewest_hosts == (4, 5)  # the bound leaves no memory free
    # A balloon takes 65 %, and of what is left nothing that is active.
    assert hosts == {Allow.NONE: 5, Allow.BALLOON: 2, Allow.COMPRESS: 2, Allow.SWAP: 1}[allow]


def test_less_than_what_is_active_is_no_fit_by_balloon() -> None:
    fleet = sized(*[16 * 1024] * 10)
    busy = replace(fleet, active=fleet.in_use * np.float32(0.9))
    question = Question(host_memory=128 * GIB, allow=Allow.BALLOON, draws=2)
    assert asked(fleet, question).fits == 1
    assert asked(busy, question).fits == 0
    assert asked(busy, replace(question, allow=Allow.SWAP)).fits == 1
