# SPDX-License-Identifier: Apache-2.0
"""The VMkernel's policies on VMs without frames: allocation, balloon, reclaim, host states."""

from __future__ import annotations

import pytest

from memvirt.vmkernel.admission import AdmissionError, VmSettings
from memvirt.vmkernel.events import Mechanism
from memvirt.vmkernel.managed import Condition
from memvirt.vmkernel.samples import HostState
from memvirt.vmkernel.vmkernel import CannotWithdraw

from .bare import Balloon, BareHost, BareVm

PAGES = 8192


def power_on(
    host: BareHost,
    name: str,
    *,
    shares: int = 1000,
    reservation: int = 0,
    levers: bool = True,
    balloon: Balloon | None = None,
) -> BareVm:
    about = VmSettings(name, PAGES, shares, reservation)
    host.kernel.admission.admit(about, 0)
    number = len(host.machine.vms) + 1
    vm = BareVm(host.machine, number, PAGES, levers=levers, balloon=balloon)
    host.kernel.power_on(vm, about, 0)
    return vm


def consumed(vm: BareVm) -> float:
    return vm.usage().consumed


def test_active_vms_have_memory_in_the_ratio_of_their_shares() -> None:
    host = BareHost(8000, MinFreePct=10, IdleTax=0)
    small, large = power_on(host, "small", shares=500), power_on(host, "large", shares=1500)
    host.run(60)
    assert consumed(large) / consumed(small) == pytest.approx(3, rel=0.05)
    assert host.machine.free_frames > 0
    assert host.kernel.state.worst >= HostState.HARD


def test_an_idle_vm_pays_the_tax_and_a_reservation_holds() -> None:
    host = BareHost(10_000, MinFreePct=10)
    idle, busy = power_on(host, "idle", reservation=2000), power_on(host, "busy")
    host.run(30)
    idle.active = 0.0
    host.run(100)
    assert consumed(busy) > 2 * consumed(idle)
    assert consumed(idle) >= 2000
    assert host.managed("idle").activity.estimate < 0.1
    with pytest.raises(AdmissionError, match="unreserved"):
        power_on(host, "third", reservation=8000)


def test_balloons_come_first_and_eviction_only_when_they_do_not_help() -> None:
    host = BareHost(13_000, MinFreePct=12)
    willing = power_on(host, "willing", balloon=Balloon())
    host.run(45)
    willing.active = 0.3
    stubborn = power_on(host, "stubborn", balloon=Balloon(connected=False))
    stubborn.active = 0.5
    host.run(60)
    events = [event.mechanism for event in host.kernel.events]
    assert willing.balloon is not None
    assert willing.balloon.size > 0
    assert Mechanism.SWAP not in events
    stubborn.active = 1.0
    willing.active = 0.9
    host.run(60)
    events = [event.mechanism for event in host.kernel.events]
    assert events.index(Mechanism.BALLOON) < events.index(Mechanism.SWAP)
    states = [e.reason for e in host.kernel.events if e.mechanism == Mechanism.STATE]
    assert any(" to soft" in reason for reason in states)
    sample = host.kernel.sample()
    assert sample.host.shared == sample.host.zipped == 0
    assert sample.host.swapped == sum(int(vm.swapped.sum()) for vm in host.machine.vms)
    assert sample.host.free == host.machine.free_frames


def test_a_vm_without_any_lever_is_looked_at_and_left_alone() -> None:
    host = BareHost(10_000, MinFreePct=10)
    alone, other = power_on(host, "alone", levers=False), power_on(host, "other")
    host.run(80)
    assert consumed(alone) == PAGES  # nothing can be taken from it
    assert consumed(other) < PAGES / 2
    assert host.managed("alone").activity.estimate == 1
    taken = {event.vm for event in host.kernel.events if event.mechanism == Mechanism.SWAP}
    assert taken == {"other"}


def test_low_blocks_vms_above_their_targets_until_memory_is_back() -> None:
    host = BareHost(9000, MinFreePct=20)
    vm = power_on(host, "greedy", levers=False)
    host.run(60)
    host.machine.others = host.machine.free_frames  # another process takes the rest
    host.run(3)
    assert host.kernel.state.state is HostState.LOW
    assert host.managed("greedy").condition is Condition.BLOCKED
    assert "low on memory" in host.managed("greedy").reason
    host.machine.others = -4000
    host.run(3)
    assert host.managed("greedy").condition is Condition.RUNNING
    assert consumed(vm) == PAGES


def test_such_a_host_cannot_be_resized() -> None:
    host = BareHost(9000)
    with pytest.raises(CannotWithdraw, match="manages its free memory"):
        host.kernel.withdraw(100)
    assert host.kernel.give_memory_back() == 0


def test_what_was_evicted_can_be_brought_back_early() -> None:
    host = BareHost(10_000, MinFreePct=10)
    vm = power_on(host, "vm")
    host.run(50)
    assert vm.reclaim is not None
    host.kernel.reclaimer.take_from(host.managed("vm"), 500, "test")
    assert vm.usage().kept_in("swap").pages == 500
    spare = host.machine.free_frames - host.kernel.state.border(100)
    assert host.kernel.controls.restore(host.managed("vm"), 10_000, "wanted") == min(500, spare)
    (event,) = [e for e in host.kernel.events if e.mechanism == Mechanism.RESTORE]
    assert (event.vm, event.reason) == ("vm", "wanted")
