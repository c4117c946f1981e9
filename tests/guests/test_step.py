# SPDX-License-Identifier: Apache-2.0
"""A host step by step: what is changed between rounds takes effect, and runs can be repeated."""

from __future__ import annotations

import pytest

from memvirt.host.host import Host
from memvirt.host.vm_control import UnknownVm
from memvirt.scenario.scenario import Scenario, parse_scenario
from memvirt.size import SizeError
from memvirt.vmkernel.admission import AdmissionError
from memvirt.vmkernel.events import Event, Mechanism
from memvirt.vmkernel.samples import VmMemory

MIB = 256


def scenario(extra: str = "", *, operations: int = 900_000, ticks: int = 30) -> Scenario:
    return parse_scenario(
        f"""
        seed = 3
        timeout = 300
        [machine]
        memory = "32M"
        quantum_ms = 5
        {extra}
        [machine.Mem]
        ShareScanTime = 0
        SamplePeriod = 0.05
        BalancePeriod = 0.05
        [[vm]]
        name = "one"
        memory = "24M"
        append = "workload=random percent=70 operations={operations}"
        [[vm]]
        name = "two"
        memory = "24M"
        paging = "shadow"
        append = "workload=idle percent=70 ticks={ticks} balloon=0"
        """,
        "test",
    )


def steps(host: Host, seconds: float) -> None:
    end = host.kernel.time_ns + seconds * 1e9
    while host.kernel.time_ns < end:
        assert host.step()


def row(host: Host, name: str) -> VmMemory:
    return next(vm for vm in host.sample().vms if vm.name == name)


def changed() -> tuple[list[Event], list[int]]:
    """A run with one change of each kind; its events, and all rows' consumed pages now and then."""
    with Host(scenario(operations=6_000_000, ticks=90)) as host:
        seen: list[Event] = []
        host.events.subscribe(seen.append, replay=True)
        consumed = []
        one, two = host.control("one"), host.control("two")
        steps(host, 0.2)
        two.change(shares=4000, reason="more")
        one.change(limit="10M", reason="less")
        steps(host, 0.05)
        assert row(host, "one").consumed <= 10 * MIB
        assert row(host, "one").entitled_max == 10 * MIB
        one.change(limit="24M", reason="all of it again")
        steps(host, 0.1)
        two.change(reservation="8M", reason="promised")
        one.set_balloon("2M", reason="squeeze")
        steps(host, 0.2)
        assert row(host, "one").balloon_target == 2 * MIB
        assert row(host, "one").balloon > 0
        assert host.kernel.admission.reserved >= 8 * MIB
        two.change(reservation=0, reason="not any more")
        one.set_balloon(None, reason="as policy has it")
        one.pause(reason="wait")
        virtual = host.vms[0].virtual_ns
        steps(host, 0.05)
        assert host.vms[0].virtual_ns == virtual
        assert row(host, "one").condition == "paused"
        one.resume()
        while host.step():
            consumed += [int(vm.consumed) for vm in host.sample().vms]
        assert host.succeeded, [vm.outcome for vm in host.vms]
        assert host.kernel.admission.reserved == host.kernel.admission.swap_reserved == 0
        assert not host.step()
        with pytest.raises(UnknownVm, match='no VM "one" is running; running are: none'):
            host.control("one")
        with pytest.raises(UnknownVm, match="VM one has ended"):
            one.resume()
    assert host.machine.free_frames == host.machine.frames
    return seen, consumed


def test_changes_take_effect_are_recorded_and_can_be_repeated() -> None:
    events, consumed = changed()
    assert (events, consumed) == changed()
    told = [(event.vm, event.reason) for event in events if event.mechanism == Mechanism.SETTINGS]
    assert told == [
        ("two", "4000 shares, reservation 0, limit 6144 pages: more"),
        ("one", "240 shares, reservation 0, limit 2560 pages: less"),
        ("one", "240 shares, reservation 0, limit 6144 pages: all of it again"),
        ("two", "4000 shares, reservation 2048, limit 6144 pages: promised"),
        ("two", "4000 shares, reservation 0, limit 6144 pages: not any more"),
        ("one", "balloon left to policy: as policy has it"),
    ]
    assert any(event.reason == "above its limit" for event in events)
    assert [e.reason for e in events if e.mechanism == Mechanism.PAUSE] == ["wait"]


def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    with Host(scenario('swap = "50M"')) as host:
        one, two = host.control("one"), host.control("two")
        steps(host, 0.02)
        before = host.kernel.admission.reserved
        with pytest.raises(ValueError, match='no VM "three" is running; running are: one, two'):
            host.control("three")
        with pytest.raises(ValueError, match="0 shares: it should be at least 1"):
            one.change(shares=0)
        with pytest.raises(ValueError, match="reservation of 2560 pages: it should be 0 to 2048"):
            one.change(reservation="10M", limit="8M")
        one.change(reservation="24M")
        with pytest.raises(AdmissionError, match=r"VM two cannot have a reservation of 24\.0 MiB"):
            two.change(reservation="24M", shares=1)
        assert row(host, "two").shares == 240
        with pytest.raises(SizeError, match='limit: "much" is no size'):
            one.change(limit="much")
        with pytest.raises(ValueError, match="balloon target of 6144 pages: it should be 0 to"):
            one.set_balloon("24M")
        one.change(reservation=0)
        assert host.kernel.admission.reserved == before


def test_a_reservation_given_up_needs_swap() -> None:
    """The swap file was made for memory less reservation; it grows, within the host's swap."""
    text = scenario('swap = "60M"')
    vms = (text.vm[0].model_copy(update={"reservation": 8 << 20}), text.vm[1])
    with Host(text.model_copy(update={"vm": vms})) as host:
        one = host.control("one")
        steps(host, 0.02)
        assert host.kernel.admission.swap_reserved == 40 * MIB
        one.change(reservation="2M", reason="less")
        assert host.kernel.admission.swap_reserved == 46 * MIB
        one.change(reservation="4M", reason="more")
        assert host.kernel.admission.swap_reserved == 46 * MIB  # the file does not shrink
        while host.step():
            pass
        assert host.succeeded
        assert host.kernel.admission.swap_reserved == host.kernel.admission.reserved == 0


def test_evicted_memory_comes_back_early_while_there_is_plenty() -> None:
    with Host(scenario(operations=4_000_000, ticks=60)) as host:
        one, two = host.control("one"), host.control("two")
        steps(host, 0.1)
        host.kernel.reclaimer.take_from(one._vm, 4 * MIB, "test")
        away = row(host, "one").zipped + row(host, "one").swapped
        assert away > 3 * MIB
        one.pause()  # or it would take all of it back by itself
        two.pause()
        two.change(limit="4M", reason="make room")
        steps(host, 0.02)
        back = one.restore("24M", reason="now there is room")
        assert back > 0
        assert row(host, "one").zipped + row(host, "one").swapped < away
        two.change(limit="24M")
        one.resume()
        two.resume()
        while host.step():
            pass
        assert host.succeeded, [vm.outcome for vm in host.vms]
