# SPDX-License-Identifier: Apache-2.0
"""Policies over many simulated VMs: convergence to shares, the idle tax, and how many fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.vmkernel.admission import VmSettings
from memvirt.vmkernel.options import MemoryOptions
from memvirt.vmkernel.samples import HostState
from memvirt.vmkernel.simulation import SimulatedGuest, Simulation

MIB = 256


def simulation(mebibytes: int, **knobs: float) -> Simulation:
    options = {"SamplePeriod": 5, "BalancePeriod": 5, "ShareScanTime": 0, **knobs}
    return Simulation(mebibytes * MIB, MemoryOptions(**options))  # type: ignore[arg-type]


def consumed(guest: SimulatedGuest) -> float:
    return guest.usage().consumed


@pytest.mark.parametrize(
    "shares", [(1000, 1000, 1000), (500, 1000, 2000), (100, 100, 800), (1, 2, 3)]
)
def test_active_vms_converge_to_the_ratio_of_their_shares(shares: tuple[int, ...]) -> None:
    host = simulation(512)
    guests = [
        host.power_on(VmSettings(f"vm{number}", 512 * MIB, weight), active=1.0)
        for number, weight in enumerate(shares)
    ]
    host.run(60)
    found = np.array([consumed(guest) for guest in guests])
    expected = np.array(shares) / sum(shares)
    np.testing.assert_allclose(found / found.sum(), expected, atol=0.02)
    assert host.kernel.state.worst >= HostState.HARD


@settings(max_examples=6, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 2000), st.integers(0, 40), st.integers(60, 200)),
        min_size=2, max_size=5,
    )
)  # fmt: skip
def test_reservations_and_limits_hold_at_every_step(vms: list[tuple[int, int, int]]) -> None:
    host = simulation(300)
    guests = []
    for number, (shares, reservation, limit) in enumerate(vms):
        about = VmSettings(f"vm{number}", 200 * MIB, shares, reservation * MIB, limit * MIB)
        guests.append((about, host.power_on(about, active=1.0)))
    for _ in range(12):
        host.step(1.0)
        for about, guest in guests:
            assert consumed(guest) <= about.maximum
            usage = guest.usage()
            # Memory is taken by force only above the reservation.
            assert consumed(guest) >= min(about.reservation, usage.in_use) - 1


@pytest.mark.parametrize(("tax", "idle_mb", "active_mb"), [(0, 167, 167), (75, 90, 245)])
def test_the_idle_memory_tax(tax: float, idle_mb: float, active_mb: float) -> None:
    """OSDI 2002 figure 7 in shape: 256 MB each, equal shares, 360 MB of machine memory."""
    host = simulation(360, IdleTax=tax)
    idle = host.power_on(VmSettings("idle", 256 * MIB, 1000), active=1.0)
    host.run(5)
    idle.active = 0.0
    host.run(120)
    active = host.power_on(VmSettings("active", 256 * MIB, 1000), active=1.0)
    host.run(120)
    assert consumed(idle) / MIB == pytest.approx(idle_mb, abs=20)
    assert consumed(active) / MIB == pytest.approx(active_mb, abs=20)
    idle.active = 1.0  # it wakes up, and has its share again
    host.run(60)
    assert consumed(idle) == pytest.approx(consumed(active), rel=0.1)


class Ballooning:
    """A driver that gives up what it is asked for, unused pages first: no frame comes of that."""

    connected = True

    def __init__(self) -> None:
        self.target = 0

    @property
    def size(self) -> int:
        return self.target


def under_pressure(host: Simulation, percent: float) -> None:
    """Take machine memory until ``percent`` of minimum free memory is left."""
    host.machine.take(host.kernel.free - int(host.kernel.min_free * percent / 100))


@pytest.mark.parametrize(("machine_gib", "vms", "vm_gib"), [(64, 100, 1), (64, 40, 2), (4, 12, 1)])
def test_balloons_inflate_however_many_vms_share_the_need(
    machine_gib: int, vms: int, vm_gib: int
) -> None:
    host = simulation(machine_gib << 10)
    for number in range(vms):
        guest = host.power_on(VmSettings(f"vm{number}", vm_gib << 18, 1000), active=0.5)
        guest.balloon = Ballooning()
        guest.populate(2000)
    under_pressure(host, 50)
    assert host.kernel.state.update(host.kernel.free) is HostState.SOFT
    for _ in range(5):
        host.kernel.balance(1_000_000_000)
    targets = sum(vm.balloon_target for vm in host.kernel.vms)
    assert targets >= 0.4 * host.kernel.min_free


@pytest.mark.parametrize("limit", [None, 1 << 16])
def test_balloons_deflate_to_what_the_limit_leaves(limit: int | None) -> None:
    host = simulation(1024)
    guest = host.power_on(VmSettings("vm", 1 << 16, 1000, limit=limit), active=0.1)
    guest.balloon = Ballooning()
    (vm,) = host.kernel.vms
    vm.balloon_target = guest.balloon.target = 4000
    for _ in range(30):
        host.kernel.balance(1_000_000_000)
    assert vm.balloon_target == guest.balloon.target == 0


def test_what_vms_keep_in_reserve_is_not_free_memory() -> None:
    host = simulation(256)
    for number in range(40):
        host.power_on(VmSettings(f"vm{number}", 64 * MIB, 10), active=0.2)
    under_pressure(host, 20)
    host.kernel.balance(0)
    assert host.kernel.state.worst >= HostState.HARD
    sample = host.kernel.sample().host
    assert sample.total == sample.vmkernel + sample.overhead + sample.guest + sample.free


def test_compression_keeps_what_would_be_swapped() -> None:
    swapped = []
    for compressible in (0.0, 1.0):
        host = simulation(256, MemZipMaxPct=30)
        for number in range(2):
            about = VmSettings(f"vm{number}", 160 * MIB, 1000)
            host.power_on(about, active=1.0, compressible=compressible)
        host.run(30)
        swapped.append(host.kernel.sample().host.swapped)
    assert swapped[1] < swapped[0] / 2


def test_common_pages_are_shared_and_counted_once() -> None:
    host = simulation(400, ShareScanTime=0.1)
    for number in range(4):
        about = VmSettings(f"vm{number}", 64 * MIB, 1000, group="g")
        host.power_on(about, active=1.0, common=0.5)
    host.run(30)
    sample = host.kernel.sample().host
    assert sample.shared == pytest.approx(0.5 * 4 * 64 * MIB, rel=0.05)
    assert sample.common == pytest.approx(0.5 * 64 * MIB, rel=0.05)


def test_many_vms_on_a_host_with_half_their_memory() -> None:
    host = simulation(40 * 16 // 2)
    random = np.random.default_rng(3)
    for number in range(40):
        active = float(random.uniform(0.1, 0.9))
        host.power_on(VmSettings(f"vm{number}", 16 * MIB, 640), active=active)
    host.run(8)
    sample = host.kernel.sample()
    assert sample.host.free >= 0
    assert sum(vm.consumed for vm in sample.vms) <= host.machine.frames
    assert len(sample.vms) == 40
