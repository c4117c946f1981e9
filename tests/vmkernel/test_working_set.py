# SPDX-License-Identifier: Apache-2.0
"""Sampling and victims: what the VMkernel learns about a guest's use of its pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memvirt.vmkernel.activity import FAST_GAIN, SLOW_GAIN, Activity
from memvirt.vmkernel.admission import VmSettings
from memvirt.vmkernel.options import MemoryOptions, SwapVictims
from memvirt.vmkernel.victims import choose_victims, give_second_chance
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import PageState

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
    assert give_second_chance(memory, 60, random) == 240
    used = set(range(0, PAGES, 2))
    for ppn in sorted(used):
        vm.read(ppn, 0)
    victims = choose_victims(memory, 60, SwapVictims.IDLE, random)
    assert len(set(victims.tolist())) == 60
    assert not used & set(victims.tolist())
    careless = choose_victims(memory, 60, SwapVictims.RANDOM, random)
    assert used & set(careless.tolist())
    # More than are known to be idle: the rest is taken at random.
    many = choose_victims(memory, 400, SwapVictims.IDLE, random)
    assert len(set(many.tolist())) == 400


def test_only_private_pages_are_victims(host: Host) -> None:
    vm = guest(host, PagingMode.NESTED)
    vm.vmm.unmap(range(100))
    vm.vmm.make_shared(200)
    victims = choose_victims(vm.managed.guest, PAGES, SwapVictims.IDLE, np.random.default_rng(1))
    assert victims.size == PAGES - 101
    assert (vm.vmm.pmap.state[victims] == PageState.PRIVATE).all()
