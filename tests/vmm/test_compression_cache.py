# SPDX-License-Identifier: Apache-2.0
"""The compression cache against a dictionary; its bounds, its order, damage noticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.machine.memory import FrameKind, MachineMemory
from memvirt.vmm.stores.backing import FULL, REFUSED, PageCorrupted
from memvirt.vmm.stores.compression_cache import Codec, CompressionCache
from tests.pages import as_pages, make_page, pages

steps = st.lists(st.tuples(st.sampled_from(["put", "take", "discard", "settle"]), pages))


def put(cache: CompressionCache, ppn: int, page: bytes) -> int:
    return int(cache.put(np.array([ppn]), as_pages([page]))[0])


@pytest.mark.parametrize("codec", Codec)
@settings(max_examples=40, deadline=None)
@given(steps=steps)
def test_what_is_kept_comes_back(codec: Codec, steps: list[tuple[str, bytes]]) -> None:
    machine = MachineMemory(64, scatter_seed=1)
    cache = CompressionCache(machine, 3, 6, codec=codec)
    kept: dict[int, bytes] = {}
    for number, (what, page) in enumerate(steps):
        if what == "put":
            slot = put(cache, number, page)
            if slot >= 0:
                assert slot not in kept
                kept[slot] = page
        elif what == "settle":
            cache.settle()
        elif kept:
            slot = min(kept)
            if what == "take":
                assert cache.take(slot) == kept.pop(slot)
            else:
                cache.discard([slot])
                del kept[slot]
        assert {slot: cache.read(slot) for slot in kept} == kept
        assert len(cache) == len(kept)
        assert cache.frames <= 6
        assert np.count_nonzero(machine.kind == FrameKind.COMPRESSED) == cache.frames
    cache.discard(list(kept))
    cache.settle()
    assert cache.frames == 0
    assert machine.free_frames == machine.frames


def test_only_pages_that_shrink_to_a_half_are_kept() -> None:
    cache = CompressionCache(MachineMemory(8), 0, 8)
    assert put(cache, 0, make_page(1, 4096)) == REFUSED
    assert put(cache, 1, make_page(1, 3000)) == REFUSED
    assert put(cache, 2, make_page(1, 1500)) >= 0  # a block of 2 KiB
    assert put(cache, 3, make_page(1, 100)) >= 0  # a block of 1 KiB, in another frame
    assert cache.frames == 2
    for ppn in range(4, 7):
        assert put(cache, ppn, make_page(ppn, 100)) >= 0
    assert cache.frames == 2
    assert put(cache, 7, make_page(7, 100)) >= 0
    assert cache.frames == 3


def test_a_full_cache_empties_the_frames_of_its_oldest_pages() -> None:
    machine = MachineMemory(8)
    cache = CompressionCache(machine, 0, 2)
    slots = [put(cache, ppn, make_page(ppn, 1500)) for ppn in range(4)]
    assert min(slots) >= 0
    assert put(cache, 9, make_page(9, 1500)) == FULL
    oldest = cache.oldest(1)
    assert [ppn for ppn, _ in oldest] == [0, 1]  # both halves of one frame
    cache.discard([slot for _, slot in oldest])
    cache.settle()
    assert put(cache, 9, make_page(9, 1500)) >= 0


def test_a_machine_without_a_frame_is_a_full_cache() -> None:
    machine = MachineMemory(1)
    machine.allocate(kind=FrameKind.GUEST)
    assert put(CompressionCache(machine, 0, 4), 0, make_page(0, 10)) == FULL


@pytest.mark.parametrize("codec", Codec)
def test_damage_is_noticed(codec: Codec) -> None:
    machine = MachineMemory(2)
    cache = CompressionCache(machine, 0, 2, codec=codec)
    slot = put(cache, 5, make_page(3, 900))
    mpn = int(np.flatnonzero(machine.kind == FrameKind.COMPRESSED)[0])
    machine.page(mpn)[50::1024] ^= 0x40  # in whichever block it is
    with pytest.raises(PageCorrupted, match="PPN 0x5"):
        cache.take(slot)
