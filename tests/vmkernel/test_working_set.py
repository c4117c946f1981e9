# SPDX-License-Identifier: Apache-2.0
"""Sampling and victims: what the VMkernel learns about a guest's use of its pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memvirt.vmkernel.activity import FAST_GAIN, SLOW_GAIN, Activity
from memvirt.vmkernel.admission import VmSettings
from memvirt.vmkernel.options import MemoryOptions
from memvirt.vmkernel.victims import (
    IdleVictims,
    RandomVictims,
    choose_victims,
    give_second_chance,
)
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import PageState
from tests.vmm.driver import Driver

from .hosts import Guest, Host

MODES = [PagingMode.SHADOW, PagingMode.NESTED]
PAGES = 512


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path, 2048, MemoryOptions(ShareScanTime=0, AllocGuestLargePage=False))
    yield host
    host.check()
    host.close()


def guest(host: Host, paging: PagingMode) -> Guest:
    vm = host.power_on(VmSettings("vm", PAGES, 10), paging)
    for ppn in range(PAGES):
        vm.write(ppn, 0, ppn)
    return vm


@pytest.mark.parametrize("paging", MODES)
@pytest.mark.parametrize("part", [0.0, 0.25, 0.75, 1.0])
def test_the_estimate_finds_the_active_part(host: Host, paging: PagingMode, part: float) -> None:
    vm = guest(host, paging)
    activity = Activity(vm.managed.guest, 100, np.random.default_rng(4))
    assert activity.estimate == 1  # nothing known yet: as if all were active
    activity.end_period()
    for period in range(24):
        for ppn in range(int(PAGES * part)):
            if period % 2:
                vm.read(ppn, 0)
            else:
                vm.write(ppn, 0, ppn)
        activity.end_period()
    assert activity.slow == pytest.approx(part, abs=0.06)
    assert activity.estimate == pytest.approx(part, abs=0.15)


def test_a_vm_wakes_up_at_once_and_falls_asleep_slowly(host: Host) -> None:
    vm = guest(host, PagingMode.NESTED)
    activity = Activity(vm.managed.guest, 100, np.random.default_rng(4))
    for _ in range(30):
        activity.end_period()
    assert activity.estimate < 0.05
    for ppn in range(PAGES):
        vm.read(ppn, 0)
    assert activity.next == pytest.approx(FAST_GAIN, abs=0.05)  # before the period has ended
    assert activity.estimate == activity.next
    activity.end_period()
    assert activity.fast == pytest.approx(FAST_GAIN, abs=0.05)
    assert activity.slow == pytest.approx(SLOW_GAIN, abs=0.05)
    for expected in (0.25, 0.125):
        activity.end_period()
        assert activity.fast == pytest.approx(expected, abs=0.05)
    assert activity.estimate == max(activity.fast, activity.slow)


@pytest.mark.parametrize("paging", MODES)
def test_a_second_chance_spares_what_is_in_use(host: Host, paging: PagingMode) -> None:
    vm = guest(host, paging)
    random = np.random.default_rng(1)
    memory = vm.managed.guest
    assert give_second_chance(memory, 60, random).size == 240
    used = set(range(0, PAGES, 2))
    for ppn in sorted(used):
        vm.read(ppn, 0)
    victims = choose_victims(memory, 60, IdleVictims(), random)
    assert len(set(victims.tolist())) == 60
    assert not used & set(victims.tolist())
    careless = choose_victims(memory, 60, RandomVictims(), random)
    assert used & set(careless.tolist())
    # More than are known to be idle: the rest is taken at random.
    many = choose_victims(memory, 400, IdleVictims(), random)
    assert len(set(many.tolist())) == 400


def test_shared_pages_are_taken_when_nothing_else_is_left(host: Host) -> None:
    vm = guest(host, PagingMode.NESTED)
    random = np.random.default_rng(1)
    vm.vmm.unmap(range(100))
    for ppn in (200, 201):
        vm.fill(ppn, bytes(4096))
    vm.vmm.share([201], vm.vmm.make_shared(200))
    vm.vmm.make_shared(300)  # shared with nobody: as good as private
    victims = choose_victims(vm.managed.guest, PAGES - 102, IdleVictims(), random)
    assert sorted(victims) == [ppn for ppn in range(100, PAGES) if ppn not in (200, 201)]
    assert choose_victims(vm.managed.guest, PAGES, IdleVictims(), random).size == PAGES - 100
    vm.vmm.unmap(victims)
    left = choose_victims(vm.managed.guest, 9, RandomVictims(), random)
    assert sorted(left) == [200, 201]
    free = host.machine.free_frames
    assert vm.vmm.unmap(left).discarded == 2
    assert host.machine.free_frames == free + 1
    assert vm.vmm.pmap.count(PageState.SHARED) == 0


@pytest.mark.parametrize("paging", MODES)
def test_watching_pages_does_not_disturb_the_sample(host: Host, paging: PagingMode) -> None:
    vm = guest(host, paging)
    memory = vm.managed.guest
    activity = Activity(memory, 100, np.random.default_rng(4))
    activity.end_period()
    for ppn in range(PAGES):
        vm.read(ppn, 0)
    assert activity.touched_fraction() == 1
    give_second_chance(memory, PAGES, np.random.default_rng(5))
    assert activity.touched_fraction() == 1


@pytest.mark.parametrize("paging", MODES)
def test_page_tables_in_use_are_not_idle(paging: PagingMode) -> None:
    driver = Driver(paging, pages=1100, frames=3000)
    driver.set_entry(5, (20 << 12) | 7)
    driver.read(5 << 12)
    tables = [0, 1, 2, 3]  # root, PDPT, PD and the table of the page, see Driver
    driver.vmm.begin_sample([*tables, 20])
    driver.vmm.watch([*tables, 20])
    assert driver.vmm.untouched(tables).all()
    driver.read(5 << 12)
    assert not driver.vmm.untouched([*tables, 20]).any()
    assert not driver.vmm.idle([*tables, 20]).any()
