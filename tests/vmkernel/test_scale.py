# SPDX-License-Identifier: Apache-2.0
"""Large VMs: a round costs what changes in it, and granules change nothing but the cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.address import PpnArray
from memvirt.vmkernel.admission import VmSettings
from memvirt.vmkernel.options import MemoryOptions
from memvirt.vmkernel.protocols import Flags, Place
from memvirt.vmkernel.random_pages import FEW, distinct
from memvirt.vmkernel.samples import HostState
from memvirt.vmkernel.simulation import PageState, SimulatedGuest, SimulatedMachine, Simulation
from memvirt.vmkernel.victims import (
    IdleVictims,
    RandomVictims,
    VictimPolicy,
    choose_victims,
    draw,
)

SWAP = [Place("compress"), Place("swap")]
GIB = 1 << 18
SECOND_NS = 1_000_000_000


# Random pages by number ------------------------------------------------------------------------


@given(st.integers(1, 10_000), st.data())
def test_distinct_numbers_are_distinct_and_below(below: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, below))
    seed = data.draw(st.integers(0, 1000))
    numbers = distinct(below, count, np.random.default_rng(seed))
    assert len(set(numbers.tolist())) == count
    assert numbers.min() >= 0
    assert numbers.max() < below


def test_each_number_is_as_likely_as_another() -> None:
    """Chi-square over 97 numbers, 40,000 of which are drawn: 99.9 % of fair draws are below 144."""
    random = np.random.default_rng(1)
    drawn = np.concatenate([distinct(97, 10, random) for _ in range(4000)])
    expected = drawn.size / 97
    assert ((np.bincount(drawn, minlength=97) - expected) ** 2 / expected).sum() < 144


def large(resident: int, *, pages: int = 4 * FEW, granule: int = 1) -> SimulatedGuest:
    """A VM whose resident pages are random ones."""
    machine = SimulatedMachine(1 << 24)
    guest = SimulatedGuest(machine, pages * granule, vm_id=1, active=0.0, granule=granule)
    guest.populate(pages * granule)
    out = np.random.default_rng(9).choice(pages, pages - resident, replace=False)
    guest.evict(out, SWAP)
    assert guest.usage().private == resident * granule
    return guest


@pytest.mark.parametrize("resident", [50, 3000, 60_000, 4 * FEW])
@pytest.mark.parametrize("count", [1, 40, 2900])
def test_drawn_pages_are_reclaimable_and_each_one_different(resident: int, count: int) -> None:
    guest = large(resident)
    random = np.random.default_rng(2)
    but = guest.reclaimable_pages()[: min(20, resident // 2)]
    found = draw(guest, resident, count, random, but=but)
    assert len(set(found.tolist())) == found.size == min(count, resident - but.size)
    assert guest.reclaimable(found).all()
    assert not np.isin(found, but).any()


@pytest.mark.parametrize("policy", [RandomVictims(), IdleVictims()])
@pytest.mark.parametrize("granule", [1, 8])
def test_victims_of_a_large_vm(policy: VictimPolicy, granule: int) -> None:
    guest = large(FEW, granule=granule)
    random = np.random.default_rng(3)
    for pages in (1, 500 * granule, 40_000 * granule, FEW * granule, FEW * granule * 2):
        victims = choose_victims(guest, pages, policy, random)
        assert victims.size == min(-(-pages // granule), FEW)
        assert np.unique(victims).size == victims.size
        assert guest.reclaimable(victims).all()


def test_idle_pages_of_a_large_vm_go_first() -> None:
    guest = large(4 * FEW)
    policy, random = IdleVictims(), np.random.default_rng(4)
    policy.prepare(guest, 100, random)
    watched = np.flatnonzero(guest.idle(np.arange(guest.pages)))
    assert watched.size == 400
    guest.active = 0.5
    guest.step()
    untouched = watched[watched >= guest.pages // 2]
    victims = choose_victims(guest, 1000, policy, random)
    assert np.unique(victims).size == 1000
    assert set(untouched.tolist()) <= set(victims.tolist())
    few = choose_victims(guest, 10, policy, random)
    assert np.isin(few, untouched).all()
    guest.evict(untouched, SWAP)
    assert not np.isin(choose_victims(guest, 1000, policy, random), untouched).any()


# A round looks at what changes -------------------------------------------------------------------


class Watched(SimulatedGuest):
    """Counts the PPNs it is asked about, and must not be asked for all of them."""

    asked = 0

    def reclaimable(self, ppns: PpnArray) -> Flags:
        self.asked += ppns.size
        return super().reclaimable(ppns)

    def idle(self, ppns: PpnArray) -> Flags:
        self.asked += ppns.size
        return super().idle(ppns)

    def untouched(self, ppns: PpnArray) -> Flags:
        self.asked += ppns.size
        return super().untouched(ppns)

    def reclaimable_pages(self) -> PpnArray:
        raise AssertionError("all pages of a VM were looked at")

    shared_pages = reclaimable_pages


@pytest.mark.parametrize("victims", ["idle", "random"])
def test_a_round_does_not_look_at_all_pages(victims: str) -> None:
    options = MemoryOptions(SamplePeriod=1, BalancePeriod=1, ShareScanTime=0, SwapVictims=victims)
    host = Simulation(8 * GIB, options)
    for number in range(16):
        guest = host.power_on(VmSettings(f"vm{number}", GIB, 1000), active=0.9)
        guest.__class__ = Watched
        guest.populate(int(0.495 * GIB))
    host.machine.take(host.kernel.free - int(0.2 * host.kernel.min_free))
    guests = [guest for guest in host.guests if isinstance(guest, Watched)]
    taken = sum(guest.usage().kept_in("swap").put_total for guest in guests)
    for _ in range(4):
        host.kernel.balance(SECOND_NS)
        now = sum(guest.usage().kept_in("swap").put_total for guest in guests)
        asked = sum(guest.asked for guest in guests)
        # Samples, a second chance of 1024 pages, what is remembered of those, and victims.
        assert asked < len(guests) * 6000 + 8 * (now - taken)
        taken = now
        for guest in guests:
            guest.asked = 0
            guest.step()
    assert host.kernel.state.worst >= HostState.HARD
    assert taken > 1000


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([1, 4]))
def test_what_a_simulated_guest_keeps_count_of(seed: int, granule: int) -> None:
    """Against a look at all pages: its usage, and which pages its guest touches."""
    random = np.random.default_rng(seed)
    pages = 300
    machine = SimulatedMachine(pages * granule * 12)
    guest = SimulatedGuest(
        machine, pages * granule, vm_id=1, active=0.5, compressible=0.5,
        cache_max=30 * granule, granule=granule,
    )  # fmt: skip
    for _ in range(40):
        state = guest._state.copy()
        action = random.integers(6)
        if action == 0:
            guest.active = float(random.random())
        elif action == 1:
            guest.evict(random.choice(pages, 40, replace=False), SWAP)
        elif action == 2:
            guest.restore(int(random.integers(60)) * granule)
        elif action == 3:
            guest.populate(int(random.integers(pages)) * granule)
        else:
            guest.grant(int(random.integers(80)) * granule)
            reserve = guest.reserve // granule
            working = round(pages * guest.active)
            resident = (state == PageState.PRIVATE) | (state == PageState.SHARED)
            missing = np.flatnonzero(~resident[:working])
            assert guest.step() is (missing.size <= reserve)
            changed = np.flatnonzero(guest._state != state)
            np.testing.assert_array_equal(changed, missing[:reserve])
        usage, count = guest.usage(), np.bincount(guest._state, minlength=5) * granule
        assert usage.private == count[PageState.PRIVATE]
        assert usage.unmapped == count[PageState.UNMAPPED]
        assert usage.kept_in("compress").pages == count[PageState.COMPRESSED]
        assert usage.kept_in("swap").pages == count[PageState.SWAPPED]
        assert usage.kept_frames == -(-count[PageState.COMPRESSED] // 2)
        assert machine.used == usage.private + usage.kept_frames + guest.reserve


# Granules ----------------------------------------------------------------------------------------


MIB = 256


def pressed(granule: int) -> Simulation:
    """Eight VMs of 64 MiB that want more than there is; they share and compress."""
    options = MemoryOptions(SamplePeriod=5, BalancePeriod=5, ShareScanTime=0.2, ShareForceSalting=0)
    host = Simulation(224 * MIB, options, granule=granule)
    for number in range(8):
        about = VmSettings(f"vm{number}", 64 * MIB, 500 + 250 * number)
        host.power_on(about, active=0.4 + 0.15 * (number % 4), compressible=0.2, common=0.1)
    host.run(24)
    return host


def test_a_granule_changes_the_cost_not_the_outcome() -> None:
    fine, coarse = pressed(2).kernel, pressed(16).kernel
    assert fine.state.worst >= HostState.SOFT
    for one, other in zip(fine.sample().vms, coarse.sample().vms, strict=True):
        assert other.memory == one.memory == 64 * MIB
        assert other.consumed == pytest.approx(one.consumed, rel=0.1)
        assert other.active_percent == pytest.approx(one.active_percent, abs=8)
        assert other.shared == pytest.approx(one.shared, rel=0.15, abs=600)
    one, other = fine.sample().host, coarse.sample().host
    assert other.min_free == one.min_free
    assert other.guest == pytest.approx(one.guest, rel=0.05)
    assert min(one.swapped, one.zipped, other.swapped, other.zipped) > 0
    for sample in (one, other):
        assert sample.total == sample.vmkernel + sample.overhead + sample.guest + sample.free


def test_sizes_count_pages_whatever_the_granule() -> None:
    host = pressed(16)
    taken = dict.fromkeys(("swap", "compress", "share"), 0)
    for event in host.kernel.events:
        if event.mechanism in taken:
            assert event.pages % 16 == 0
            taken[event.mechanism] += event.pages
    sample = host.kernel.sample()
    assert host.kernel.events.lost == 0
    assert taken["swap"] == sample.host.swap_writes_total
    assert taken["compress"] == sum(vm.zips_total for vm in sample.vms)
    assert taken["share"] == sample.host.shared > 0
    assert sum(guest.faults for guest in host.guests) % 16 == 0


@pytest.mark.parametrize(("granule", "pages"), [(0, 1 << 14), (-4, 1 << 14), (48, 1 << 14)])
def test_a_granule_that_cannot_be_is_refused(granule: int, pages: int) -> None:
    with pytest.raises(ValueError, match="granule"):
        Simulation(1 << 18, MemoryOptions(), granule=granule).power_on(
            VmSettings("vm", pages, 1), active=1.0
        )


def test_a_tebibyte_of_vms_in_granules_on_half_a_tebibyte() -> None:
    host = Simulation(512 * GIB, MemoryOptions(ShareScanTime=0), granule=64)
    for number in range(40):
        host.power_on(VmSettings(f"vm{number}", 30 * GIB, 10_000), active=0.2 + 0.02 * number)
    host.run(8)
    sample = host.kernel.sample()
    assert sample.host.total == 512 * GIB
    assert sum(vm.memory for vm in sample.vms) == 1200 * GIB
    assert sample.host.free >= 0
    assert sample.host.guest > 100 * GIB
