# SPDX-License-Identifier: Apache-2.0
"""Pages compared in full, and frames found by content, against plain comparisons of bytes."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from memvirt.address import PAGE_BYTES, MpnArray
from memvirt.machine.content import equal_pages, hash_pages
from memvirt.machine.memory import FrameKind, MachineMemory
from memvirt.share_table import ShareTable


def test_one_bit_anywhere_makes_pages_differ() -> None:
    random = np.random.default_rng(3)
    page = random.integers(0, 256, PAGE_BYTES, dtype=np.uint8)
    places = np.concatenate(
        (np.arange(0, PAGE_BYTES, 61), np.arange(PAGE_BYTES - 8, PAGE_BYTES), [511, 512])
    )
    content = np.tile(page, (places.size + 2, 1))
    for row, place in enumerate(places.tolist()):
        content[row, place] ^= 1 << (row % 8)
    rows = np.arange(places.size + 1)
    verdicts = equal_pages(content.reshape(-1), rows, np.full(rows.size, rows.size))
    assert np.flatnonzero(verdicts).tolist() == [places.size]
    assert np.unique(hash_pages(content, np.arange(len(content)))).size == places.size + 1


def test_pages_at_odd_addresses_and_with_gaps_are_hashed_alike() -> None:
    random = np.random.default_rng(4)
    content = random.integers(0, 256, 4 * PAGE_BYTES + 1, dtype=np.uint8)[1:].reshape(4, -1)
    expected = [xxhash.xxh3_64_intdigest(page.tobytes()) for page in content]
    assert hash_pages(content, np.arange(4)).tolist() == expected
    assert hash_pages(content[::2], np.arange(2)).tolist() == expected[::2]


def test_a_page_that_is_not_there_is_an_error() -> None:
    content = np.zeros(2 * PAGE_BYTES, np.uint8)
    for row in (-1, 2):
        with pytest.raises(IndexError, match="the content has 2 pages"):
            hash_pages(content, np.array([0, row]))
        with pytest.raises(IndexError, match="the content has 2 pages"):
            equal_pages(content, np.array([0]), np.array([row]))


@pytest.mark.filterwarnings("ignore:overflow encountered")  # of plain Python, in checked runs
@pytest.mark.parametrize("seed", range(4))
def test_a_frame_is_found_if_equal_shared_and_of_the_salt(seed: int) -> None:
    """The table also has frames under hashes that are not theirs, and frames that are gone."""
    random = np.random.default_rng(seed)
    machine, table = MachineMemory(120), ShareTable()
    frames = machine.content.reshape(-1, PAGE_BYTES)
    own = machine.allocate(60, kind=FrameKind.GUEST, owner=1)
    frames[own] = np.repeat(random.integers(0, 20, own.size, dtype=np.uint8), PAGE_BYTES).reshape(
        -1, PAGE_BYTES
    )
    entries = {}
    for value in range(16):  # values 16 to 19 are in no frame
        kind = FrameKind.VMKERNEL if value % 5 == 0 else FrameKind.SHARED
        mpn = machine.allocate(kind=kind)
        if kind is FrameKind.SHARED:
            machine.set_share_salt(mpn, value % 3 % 2)
        frames[mpn] = value if value % 4 else value + 1
        key = int(xxhash.xxh3_64_intdigest(bytes([value]) * PAGE_BYTES))
        entries[value] = int(mpn[0])
        table.set_frames(np.array([key], np.uint64), mpn)
    for salt in (0, 1):
        hashes, found = machine.find_equal(own, table, salt)
        assert hashes.tolist() == hash_pages(machine.content, own).tolist()
        for mpn, other in zip(own.tolist(), found.tolist(), strict=True):
            known = entries.get(int(frames[mpn, 0]), -1)
            if known >= 0 and (
                machine.kind[known] != FrameKind.SHARED
                or machine.share_salt(known) != salt
                or (frames[known] != frames[mpn]).any()
            ):
                known = -1
            assert other == known
        assert (found >= 0).any()
    with pytest.raises(IndexError, match="has 120 frames"):
        machine.find_equal(MpnArray(np.array([0, 120], np.uint32)), table, 0)
