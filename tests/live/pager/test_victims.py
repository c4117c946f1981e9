# SPDX-License-Identifier: Apache-2.0
"""Which pages are chosen: present and RESIDENT ones only, cold before hot."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from memvirt.live.pager.page_states import PageIndex, PageState, PageTableFile
from memvirt.live.pager.victims import Goal, VictimSelection

PAGES = 1000


class Memory:
    """Only ``present`` is asked for."""

    def __init__(self) -> None:
        self.there = np.ones(PAGES, bool)

    def present(self) -> NDArray[np.bool_]:
        return self.there


@pytest.fixture
def table(tmp_path: Path) -> PageTableFile:
    return PageTableFile.create(tmp_path / "pages", PAGES)


def _chosen(table: PageTableFile, memory: Memory, goal: Goal, *, forced: bool) -> list[int]:
    """All pages in the order in which they are chosen."""
    selection = VictimSelection(table, memory, goal, seed=1)  # type: ignore[arg-type]
    pages: list[int] = []
    while runs := selection.next_batch(64, forced=forced):
        batch = [page for first, count in runs for page in range(first, first + count)]
        assert len(batch) <= 64
        pages += batch
    return pages


def test_every_resident_page_is_chosen_once_and_no_other(table: PageTableFile) -> None:
    memory = Memory()
    memory.there[100:200] = False
    table.states[300:400] = PageState.STORED
    table.states[500:510] = PageState.EVICTING
    table.states[700] = PageState.RESTORING
    right = set(range(PAGES)) - {*range(100, 200), *range(300, 400), *range(500, 510), 700}
    chosen = _chosen(table, memory, Goal(target=0), forced=True)
    assert len(chosen) == len(set(chosen))
    assert set(chosen) == right


def test_pages_that_came_back_go_last_and_not_at_once(table: PageTableFile) -> None:
    now = int(time.monotonic())
    table.restored_at[:] = now - 100
    for page in range(160, 320):
        table.note_restored(PageIndex(page), now - 50)
        table.note_restored(PageIndex(page), now - 50)
    table.restored_at[480:640] = now + 1
    chosen = _chosen(table, Memory(), Goal(target=0), forced=True)
    assert set(chosen) == set(range(PAGES)) - set(range(480, 640))
    hot = set(range(160, 320))
    assert hot.isdisjoint(chosen[:640])  # within a batch the order is that of memory
    assert hot >= set(chosen[-128:])


def test_cold_pages_only_and_a_return_doubles_the_time(table: PageTableFile) -> None:
    now = int(time.monotonic())
    table.restored_at[:] = now - 15
    table.restored_at[:320] = now - 5
    table.refaults[640:] = 1
    assert set(_chosen(table, Memory(), Goal(cold=10), forced=False)) == set(range(320, 640))
    assert set(_chosen(table, Memory(), Goal(cold=7), forced=False)) == set(range(320, PAGES))


def test_nothing_is_chosen_without_need(table: PageTableFile) -> None:
    assert _chosen(table, Memory(), Goal(target=1 << 30), forced=False) == []
    assert _chosen(table, Memory(), Goal(), forced=False) == []


def test_evictions_let_the_memory_of_returns_fade(table: PageTableFile) -> None:
    selection = VictimSelection(table, Memory(), Goal(), seed=1)  # type: ignore[arg-type]
    table.refaults[:10] = 2
    selection.note_evicted([(PageIndex(0), 20)])
    assert table.refaults[:20].tolist() == [1] * 10 + [0] * 10
