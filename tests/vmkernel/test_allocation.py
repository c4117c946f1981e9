# SPDX-License-Identifier: Apache-2.0
"""Allocation against slow models that share no code with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.vmkernel.allocation import fill, idle_page_cost, revoke, targets, weights

vm = st.tuples(st.integers(1, 5000), st.integers(0, 400), st.integers(0, 400))
vms = st.lists(vm, min_size=1, max_size=8)


def water(total: float, weight: list[float], lower: list[float], upper: list[float]) -> list[float]:
    """Water-filling by bisection on the level."""
    low, high = 0.0, 1e9
    for _ in range(200):
        level = (low + high) / 2
        amounts = [min(max(level * w, a), b) for w, a, b in zip(weight, lower, upper, strict=True)]
        low, high = (level, high) if sum(amounts) < total else (low, level)
    return amounts


def page_by_page(need: int, weight: list[int], pages: list[int], floor: list[int]) -> list[int]:
    """Min-funding revocation as the paper has it: one page at a time, from the lowest rho."""
    left = list(pages)
    for _ in range(need):
        able = [i for i in range(len(left)) if left[i] > floor[i]]
        if not able:
            break
        victim = min(able, key=lambda i: (weight[i] / left[i], i))
        left[victim] -= 1
    return [before - after for before, after in zip(pages, left, strict=True)]


@given(vms, st.integers(0, 4000))
def test_fill_is_water_filling(amounts: list[tuple[int, int, int]], total: int) -> None:
    weight = [float(w) for w, _, _ in amounts]
    lower = [float(min(a, b)) for _, a, b in amounts]
    upper = [float(max(a, b)) for _, a, b in amounts]
    found = fill(total, weight, lower, upper)
    assert (found >= np.array(lower) - 1e-6).all()
    assert (found <= np.array(upper) + 1e-6).all()
    within = min(max(total, sum(lower)), sum(upper))
    assert math.isclose(found.sum(), within, rel_tol=1e-6, abs_tol=1e-6)
    if sum(lower) < total < sum(upper):
        np.testing.assert_allclose(found, water(total, weight, lower, upper), atol=1e-3)


@settings(max_examples=60)
@given(vms, st.integers(0, 800))
def test_revocation_equals_taking_page_by_page(
    amounts: list[tuple[int, int, int]], need: int
) -> None:
    weight = [w for w, _, _ in amounts]
    pages = [max(a, b) + 1 for _, a, b in amounts]
    floor = [min(a, b) for _, a, b in amounts]
    found = revoke(need, weight, pages, floor)
    slow = page_by_page(need, weight, pages, floor)
    assert math.isclose(found.sum(), sum(slow), abs_tol=1e-6)
    # One page at a time overshoots the common level by at most a page in each VM.
    np.testing.assert_allclose(found, slow, atol=len(amounts) + 1)


def test_an_idle_page_costs_four_active_ones_at_three_quarters() -> None:
    assert idle_page_cost(75) == 4
    assert idle_page_cost(0) == 1
    np.testing.assert_allclose(weights([100, 100, 100], [1, 0, 0.5], 75), [100, 25, 40])
    np.testing.assert_allclose(weights([100, 100], [1, 0], 0), [100, 100])


def test_active_vms_get_memory_in_the_ratio_of_their_shares() -> None:
    shares = [1000, 2000, 3000]
    entitled = targets(6000, weights(shares, [1, 1, 1], 75), [0] * 3, [6000] * 3, [6000] * 3)
    np.testing.assert_allclose(entitled, [1000, 2000, 3000])


@pytest.mark.parametrize(("tax", "expected"), [(0, (180, 180)), (75, (104, 256))])
def test_the_published_experiment_of_the_idle_memory_tax(
    tax: float, expected: tuple[float, float]
) -> None:
    """OSDI 2002 figure 7: two VMs of 256 MB, equal shares, one idle, 360 MB for both."""
    weight = weights([1, 1], [0, 1], tax)
    entitled = targets(360, weight, [0, 0], [256, 256], [256, 256])
    np.testing.assert_allclose(entitled, expected)


@given(vms, st.integers(0, 4000), st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_targets_respect_reservation_and_limit(
    amounts: list[tuple[int, int, int]], total: int, active: list[float]
) -> None:
    minimum = [min(a, b) for _, a, b in amounts]
    maximum = [max(a, b) for _, a, b in amounts]
    demand = [(a * 7) % 401 for _, a, _ in amounts]
    weight = weights([w for w, _, _ in amounts], active[: len(amounts)], 75)
    entitled = targets(total, weight, minimum, maximum, demand)
    assert (entitled >= np.array(minimum) - 1e-6).all()
    assert (entitled <= np.array(maximum) + 1e-6).all()
    if total >= sum(minimum):
        assert entitled.sum() <= total + 1e-6


def test_memory_nobody_has_a_use_for_goes_to_those_who_do() -> None:
    entitled = targets(1000, [1.0, 1.0], [0, 0], [1000, 1000], [100, 2000])
    np.testing.assert_allclose(entitled, [100, 900])
