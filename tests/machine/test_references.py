# SPDX-License-Identifier: Apache-2.0
"""References of frames listed several at a time, against counts in a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.machine.memory import FrameKind, MachineMemory

_FRAMES = 12


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(0, _FRAMES - 1), max_size=8)), max_size=30
    )
)
def test_lists_of_frames_are_counted_or_refused_whole(
    steps: list[tuple[bool, list[int]]],
) -> None:
    machine = MachineMemory(_FRAMES, metadata_only=True)
    private = machine.allocate(_FRAMES // 2, kind=FrameKind.GUEST, owner=3).tolist()
    shared = machine.allocate(_FRAMES // 3, kind=FrameKind.SHARED).tolist()
    counts = dict.fromkeys(private + shared, 1)
    for add, listed in steps:
        after = dict(counts)
        for mpn in listed:
            after[mpn] = after.get(mpn, 0) + (1 if add else -1)
        kinds, owners = machine.kind.copy(), machine.owner.copy()
        free = machine.free_list().tolist()
        if add:
            wrong = any(mpn not in shared or mpn not in counts for mpn in listed)
        else:
            wrong = min(after.values(), default=0) < 0
        if wrong:
            with pytest.raises(ValueError, match="cannot gain" if add else "free already"):
                (machine.add_references if add else machine.release)(np.array(listed, np.uint32))
            assert (machine.kind == kinds).all()
            assert (machine.owner == owners).all()
            assert machine.free_list().tolist() == free
            continue
        if add:
            machine.add_references(np.array(listed, np.uint32))
        else:
            assert machine.release(np.array(listed, np.uint32)) == sum(
                count == 0 for count in after.values()
            )
        counts = {mpn: count for mpn, count in after.items() if count}
        references = machine.references[:]
        assert {int(m): int(references[m]) for m in np.flatnonzero(references)} == counts
        gone = np.setdiff1d(np.arange(_FRAMES), list(counts))
        assert sorted(machine.free_list().tolist()) == gone.tolist()
        assert (machine.kind[gone] == FrameKind.FREE).all()
        assert machine.statistics().free == gone.size


def test_a_frame_that_is_not_there_is_an_error_and_changes_nothing() -> None:
    machine = MachineMemory(4, metadata_only=True)
    mpns = machine.allocate(2, kind=FrameKind.SHARED)
    for change in (machine.release, machine.add_references):
        with pytest.raises(IndexError, match="0x4: this machine has 4 frames"):
            change(np.array([*mpns, 4], np.uint32))
    assert (machine.references[mpns] == 1).all()
