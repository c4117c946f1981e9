# SPDX-License-Identifier: Apache-2.0
"""Machine memory: allocation, zeroing, references, exhaustion, scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.machine.free_list import FreeList
from memvirt.machine.memory import (
    SCATTER_FRAMES,
    FrameKind,
    MachineMemory,
    MachineMemoryExhausted,
)


def test_a_frame_is_zeroed_before_another_gets_it() -> None:
    machine = MachineMemory(8)
    mpns = machine.allocate(8, kind=FrameKind.GUEST, owner=1)
    for mpn in mpns.tolist():
        machine.page(mpn)[:] = 0xA5
    machine.release(mpns)
    for mpn in machine.allocate(8, kind=FrameKind.GUEST, owner=2).tolist():
        assert not machine.page(mpn).any()


def test_exhaustion_says_how_much_and_changes_nothing() -> None:
    machine = MachineMemory(8)
    machine.allocate(5, kind=FrameKind.GUEST)
    with pytest.raises(MachineMemoryExhausted) as caught:
        machine.allocate(4, kind=FrameKind.GUEST)
    assert (caught.value.wanted, caught.value.free) == (4, 3)
    assert machine.free_frames == 3


def test_scattered_frames_are_not_contiguous_but_repeatable() -> None:
    first = MachineMemory(4096, scatter_seed=9).allocate(1000, kind=FrameKind.GUEST)
    again = MachineMemory(4096, scatter_seed=9).allocate(1000, kind=FrameKind.GUEST)
    assert np.array_equal(first, again)
    assert np.count_nonzero(np.diff(first.astype(int)) == 1) < 20
    plain = MachineMemory(4096).allocate(1000, kind=FrameKind.GUEST)
    assert (np.diff(plain.astype(int)) == 1).all()


def test_frames_are_scattered_within_256_mib_and_each_is_handed_out_once() -> None:
    """What the host gives in huge pages is used up before more of it is touched."""
    machine = MachineMemory(3 * SCATTER_FRAMES + 100, scatter_seed=9, metadata_only=True)
    for part in range(3):
        taken = machine.allocate(SCATTER_FRAMES, kind=FrameKind.GUEST).astype(int)
        first = part * SCATTER_FRAMES
        assert np.array_equal(np.sort(taken), np.arange(first, first + SCATTER_FRAMES))
        assert np.count_nonzero(np.diff(taken) == 1) < 20
    assert machine.allocate(100, kind=FrameKind.GUEST).min() == 3 * SCATTER_FRAMES


@pytest.mark.parametrize("order", [0, 3, 9])
def test_runs_are_aligned_and_contiguous(order: int) -> None:
    machine = MachineMemory(2048, scatter_seed=1)
    machine.release(machine.allocate(600, kind=FrameKind.GUEST))
    first = machine.allocate_run(order, kind=FrameKind.GUEST, owner=3)
    assert first % (1 << order) == 0
    assert (machine.owner[first : first + (1 << order)] == 3).all()
    rest = machine.allocate(machine.free_frames, kind=FrameKind.GUEST)
    assert not np.isin(np.arange(first, first + (1 << order)), rest).any()


def test_a_fragmented_machine_has_no_run() -> None:
    machine = MachineMemory(64)
    machine.release(machine.allocate(64, kind=FrameKind.GUEST)[::2])
    with pytest.raises(MachineMemoryExhausted):
        machine.allocate_run(1, kind=FrameKind.GUEST)


def test_freeing_twice_is_refused() -> None:
    machine = MachineMemory(4)
    mpn = int(machine.allocate(kind=FrameKind.GUEST)[0])
    machine.release(mpn)
    with pytest.raises(ValueError, match="free already"):
        machine.release(mpn)
    with pytest.raises(ValueError, match="cannot gain"):
        machine.add_references(mpn)


def test_a_tebibyte_of_frames_can_be_represented() -> None:
    machine = MachineMemory(1 << 28, metadata_only=True)
    machine.allocate(1 << 20, kind=FrameKind.GUEST, owner=1)
    assert machine.statistics().guest == 1 << 20
    assert machine.bytes == 1 << 40


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=40))
def test_against_a_set(steps: list[tuple[bool, int]]) -> None:
    machine = MachineMemory(32, scatter_seed=2)
    held: dict[int, int] = {}
    for allocate, number in steps:
        if allocate and number <= machine.free_frames:
            for mpn in machine.allocate(number, kind=FrameKind.SHARED).tolist():
                assert mpn not in held
                held[mpn] = 1
        elif allocate:
            for mpn in held:
                machine.add_references(mpn)
                held[mpn] += 1
        else:
            for mpn in list(held)[:number]:
                machine.release(mpn)
                held[mpn] -= 1
                if held[mpn] == 0:
                    del held[mpn]
        assert machine.free_frames == 32 - len(held)
        references = machine.references[:]
        assert {int(m): int(references[m]) for m in np.flatnonzero(references)} == held
        assert sorted(machine.free_list()) == sorted(set(range(32)) - set(held))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("apr"), st.integers(0, 12)), max_size=40))
def test_the_free_list_is_a_stack(steps: list[tuple[str, int]]) -> None:
    """Against a Python list: last in, first out; frames taken from the middle leave the order."""
    links = np.zeros(24, np.uint32)
    stack = list(range(23, -1, -1))
    free = FreeList(links, np.array(stack, np.uint32))
    out: list[int] = []
    for action, number in steps:
        if action == "a":
            count = min(number, len(stack))
            taken = free.take(count).tolist()
            assert taken == stack[len(stack) - count :][::-1]
            del stack[len(stack) - count :]
            out += taken
        elif action == "p":
            back, out = out[:number], out[number:]
            free.put(np.array(back, np.uint32))
            stack += back
        else:
            gone = stack[::3][:number]
            free.remove(np.array(gone, np.uint32))
            stack = [mpn for mpn in stack if mpn not in gone]
            out += gone
        assert free.count == len(stack)
        assert free.mpns().tolist() == stack[::-1]


def test_only_shared_frames_gain_references() -> None:
    machine = MachineMemory(8)
    (guest,) = machine.allocate(kind=FrameKind.GUEST, owner=3)
    (shared,) = machine.allocate(kind=FrameKind.SHARED)
    machine.add_references([shared, shared])
    assert machine.references[[guest, shared, 7]].tolist() == [1, 3, 0]
    with pytest.raises(ValueError, match="is GUEST: it cannot gain"):
        machine.add_references([shared, guest])
    assert machine.references[shared] == 3
    assert machine.owned_by(3).tolist() == [guest]
