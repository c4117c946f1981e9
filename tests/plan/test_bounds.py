# SPDX-License-Identifier: Apache-2.0
"""Bounds of placement against all placements there are, and placement against known optima."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.plan.fleet import Fleet
from memvirt.plan.generate import generate
from memvirt.plan.placement import bin_packing_bound, place
from memvirt.plan.policy import CLEAR_PERCENT, HostRules, MemoryOptions

RULES = HostRules(128 << 18, MemoryOptions())
CAPACITY = RULES.managed - RULES.border(CLEAR_PERCENT)


def fewest(sizes: list[int], capacity: int) -> int:
    """Bins by trying everything: put each item in each bin that is there, or in a new one."""
    best = len(sizes)

    def put(item: int, bins: list[int]) -> None:
        nonlocal best
        if len(bins) >= best:
            return
        if item == len(sizes):
            best = len(bins)
            return
        for number in range(len(bins)):
            if bins[number] + sizes[item] <= capacity:
                bins[number] += sizes[item]
                put(item + 1, bins)
                bins[number] -= sizes[item]
        put(item + 1, [*bins, sizes[item]])

    put(0, [])
    return best


def of_sizes(sizes: list[float]) -> tuple[Fleet, np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    fleet = generate(len(sizes), days=1 / 24, interval=3600)
    vms = tuple(
        replace(vm, overhead=0.0, settings=replace(vm.settings, memory=RULES.managed))
        for vm in fleet.vms
    )
    in_use = np.array(sizes)[:, None]
    return replace(fleet, vms=vms, in_use=in_use.astype(np.float32)), in_use


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=9))
def test_the_bound_is_one(sizes: list[int]) -> None:
    optimum = fewest(sizes, 100)
    bound = bin_packing_bound(np.array(sizes, float), 100.0)
    assert np.ceil(sum(sizes) / 100 - 1e-6) <= bound <= optimum


def test_the_bound_sees_what_a_sum_does_not() -> None:
    assert bin_packing_bound(np.full(30, 51.0), 100.0) == 30
    assert bin_packing_bound(np.array([70.0] * 10 + [40.0] * 10), 100.0) == 14


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(20, 100), min_size=1, max_size=8))
def test_placement_is_close_to_the_optimum(parts: list[int]) -> None:
    sizes = [float(part * (CAPACITY // 101)) for part in parts]
    found = place(RULES, *of_sizes(sizes))
    assert found.bound <= fewest(parts, 101) <= found.hosts <= fewest(parts, 101) + 1


@pytest.mark.parametrize(("cut", "hosts"), [(3, 10), (3, 40), (5, 40), (8, 10)])
def test_hosts_cut_into_vms(cut: int, hosts: int) -> None:
    random = np.random.default_rng(cut * hosts)
    sizes: list[float] = []
    for _ in range(hosts):
        cuts = np.sort(random.random(cut - 1))
        sizes += list(np.diff(np.concatenate(([0.0], cuts, [1.0]))) * CAPACITY * 0.9999)
    found = place(RULES, *of_sizes(sizes))
    assert found.bound <= hosts <= found.hosts <= hosts + 1


def test_the_worst_case_of_first_fit_decreasing() -> None:
    # Johnson 1973: 11/9 of the optimum, here 33 hosts for 27.
    sizes = [51.0] * 18 + [27.0] * 18 + [26.0] * 18 + [23.0] * 36
    found = place(RULES, *of_sizes([size * CAPACITY / 100 for size in sizes]))
    assert 27 <= found.hosts <= 30
