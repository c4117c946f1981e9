# SPDX-License-Identifier: Apache-2.0
"""Published results in shape, on real guests: sharing, idle memory tax, reservations and limits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memvirt.host.host import Host
from memvirt.scenario.scenario import parse_scenario
from memvirt.vmkernel.events import Mechanism
from memvirt.vmkernel.samples import Sample, VmMemory

_FAST = """
seed = 7
timeout = 300
[machine.Mem]
SamplePeriod = 0.05
BalancePeriod = 0.05
"""


def run(text: str, look: Callable[[Sample], object], every: float = 0.01) -> Host:
    """Run a scenario to its end, every guest to success; ``look`` sees each sample."""
    with Host(parse_scenario(_FAST + text, "test")) as host:
        assert host.run(on_sample=look, sample_interval=every), [
            (vm.name, vm.outcome, bytes(vm.serial_log[-200:])) for vm in host.vms
        ]
        return host


def vm_of(sample: Sample, name: str) -> VmMemory:
    return next(vm for vm in sample.vms if vm.name == name)


def frames_for_guests(count: int, options: str) -> int:
    """Fewest frames that ``count`` identical guests took while all of them were running."""
    least: list[int] = []

    def look(sample: Sample) -> None:
        running = [vm for vm in sample.vms if vm.condition != "off"]
        if len(running) == count and sample.host.time_ns > 800_000_000:
            least.append(sample.host.guest)

    run(
        f"""
        ShareScanTime = 0.004
        AllocGuestLargePage = false
        [machine]
        memory = "160M"
        [[vm]]
        name = "same"
        count = {count}
        memory = "16M"
        append = "workload=idle percent=60 ticks=100 seed=3"
        {options}
        """,
        look,
        0.05,
    )
    return min(least)


def test_identical_guests_need_little_more_than_one() -> None:
    """OSDI 2002 section 4: the more alike guests there are, the more of them is shared."""
    one = frames_for_guests(1, 'group = "alike"')
    six = frames_for_guests(6, 'group = "alike"')
    assert six < 1.25 * one
    apart = frames_for_guests(6, "")  # each VM shares with itself only
    assert apart > 5 * one


def hoarder_after(tax: int) -> tuple[float, float]:
    """Pages the idle VM and the active one have when the active one is about to end."""
    last: list[tuple[float, float]] = []

    def look(sample: Sample) -> None:
        if len(sample.vms) == 2 and all(vm.condition != "off" for vm in sample.vms):
            pair = vm_of(sample, "hoarder"), vm_of(sample, "worker")
            last.append((pair[0].consumed, pair[1].consumed))

    run(
        f"""
        IdleTax = {tax}
        ShareScanTime = 0
        MemZipEnable = false
        [machine]
        memory = "48M"
        [[vm]]
        name = "hoarder"
        memory = "32M"
        append = "workload=idle percent=85 ticks=300 balloon=0"
        [[vm]]
        name = "worker"
        memory = "32M"
        start = 0.5
        append = "workload=random percent=80 operations=2000000 balloon=0"
        """,
        look,
    )
    return last[-1]


def test_the_idle_memory_tax_moves_memory_to_the_active_vm() -> None:
    """OSDI 2002 section 5.4: equal shares; without a tax equal memory, with 75 % it moves apart."""
    idle, active = hoarder_after(0)
    assert idle == pytest.approx(active, rel=0.15)
    taxed_idle, taxed_active = hoarder_after(75)
    assert taxed_active > 1.4 * taxed_idle
    assert taxed_idle < 0.85 * idle


def test_a_limit_is_never_exceeded_and_a_reservation_never_broken() -> None:
    seen: list[Sample] = []
    host = run(
        """
        ShareScanTime = 0.02
        [machine]
        memory = "48M"
        [[vm]]
        name = "limited"
        memory = "24M"
        limit = "12M"
        append = "workload=fill percent=80 passes=2 balloon=0"
        [[vm]]
        name = "reserved"
        memory = "16M"
        reservation = "16M"
        paging = "shadow"
        append = "workload=random percent=80 operations=600000"
        [[vm]]
        name = "greedy"
        memory = "48M"
        shares = "high"
        append = "workload=fill percent=90 passes=2 balloon=0"
        """,
        seen.append,
        0.005,
    )
    for sample in seen:
        limited = vm_of(sample, "limited")
        assert limited.consumed <= 12 << 8
        assert vm_of(sample, "reserved").swapped == 0
        assert vm_of(sample, "reserved").zipped == 0
    assert any(vm_of(sample, "limited").swapped for sample in seen)
    assert any(vm_of(sample, "greedy").swapped for sample in seen)
    victims = {event.vm for event in host.events if event.mechanism == Mechanism.SWAP}
    assert victims == {"limited", "greedy"}


def test_balloons_come_before_compression_and_swap() -> None:
    """A guest with a driver gives up what it does not need before anything is taken from it."""
    host = run(
        """
        ShareScanTime = 0
        MinFreePct = 20
        [machine]
        memory = "64M"
        quantum_ms = 2
        [[vm]]
        name = "quiet"
        memory = "32M"
        append = "workload=fill percent=30 passes=40"
        [[vm]]
        name = "growing"
        memory = "64M"
        start = 0.1
        append = "workload=random percent=80 operations=4000000 balloon=0"
        """,
        lambda sample: None,
    )
    first = {}
    for event in host.events:
        first.setdefault(event.mechanism, event)
    assert Mechanism.BALLOON in first
    assert first[Mechanism.BALLOON].reason.startswith("state soft")
    for later in (Mechanism.COMPRESS, Mechanism.SWAP):
        if later in first:
            assert first[later].time_ns >= first[Mechanism.BALLOON].time_ns
