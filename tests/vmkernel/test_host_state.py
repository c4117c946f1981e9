# SPDX-License-Identifier: Apache-2.0
"""Minimum free memory by published figures, and the host's state with its hysteresis."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvirt.vmkernel.host_state import HostStateMachine, minimum_free_pages
from memvirt.vmkernel.samples import HostState

PAGES_PER_MB = 256


@pytest.mark.parametrize(
    ("managed_mb", "minimum_mb"),
    [
        (4096, 245.76),
        (28 * 1024, 901.12),
        (128 * 1024, 1925.12),
        (32510, 939),  # an esxtop screen of a real host
    ],
)
def test_the_sliding_scale_gives_published_figures(managed_mb: int, minimum_mb: float) -> None:
    found = minimum_free_pages(managed_mb * PAGES_PER_MB) / PAGES_PER_MB
    assert found == pytest.approx(minimum_mb, abs=1)


def test_a_percentage_overrides_the_scale() -> None:
    assert minimum_free_pages(1000, 25) == 250


def test_the_real_host_was_in_state_clear() -> None:
    host = HostStateMachine(939 * PAGES_PER_MB)
    assert host.update(2397 * PAGES_PER_MB) is HostState.CLEAR  # 255 %


# (free, in percent of the minimum; the state then)
WALK = [
    (500, HostState.HIGH), (401, HostState.HIGH), (399, HostState.CLEAR), (410, HostState.CLEAR),
    (421, HostState.HIGH), (64, HostState.CLEAR), (63, HostState.SOFT), (99, HostState.SOFT),
    (101, HostState.CLEAR), (31, HostState.HARD), (63, HostState.HARD), (65, HostState.SOFT),
    (15, HostState.LOW), (31, HostState.LOW), (33, HostState.HARD), (0, HostState.LOW),
    (1000, HostState.HIGH), (40, HostState.SOFT),
]  # fmt: skip


def test_every_border_has_hysteresis() -> None:
    host = HostStateMachine(10_000)
    for percent, state in WALK:
        assert host.update(percent * 100) is state, percent
    assert host.worst is HostState.LOW


@given(st.integers(1, 1 << 30), st.integers(1, 1 << 24))
def test_more_memory_never_means_less_minimum(pages: int, more: int) -> None:
    assert 0 <= minimum_free_pages(pages) <= minimum_free_pages(pages + more) <= pages + more


@given(st.lists(st.integers(0, 10_000), max_size=30), st.integers(0, 10_000))
def test_the_state_never_contradicts_its_borders(path: list[int], last: int) -> None:
    """Whatever the way there: never better than free memory allows, nor worse than it must be."""
    host = HostStateMachine(1000)
    for free in path:
        host.update(free)
    state = host.update(last)
    worst = HostStateMachine(1000)
    worst.update(0)
    assert HostStateMachine(1000).update(last) <= state <= worst.update(last)
