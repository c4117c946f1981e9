# SPDX-License-Identifier: Apache-2.0
"""Runs of neighbours, against a walk over the numbers one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memvirt.live.runs import runs_of


@given(st.sets(st.integers(0, 60)), st.sampled_from([1, 4096]))
def test_runs_are_those_of_a_walk(chosen: set[int], step: int) -> None:
    numbers = np.array(sorted(chosen), np.int64) * step
    walked: list[tuple[int, int]] = []
    for number in numbers.tolist():
        if walked and number == walked[-1][0] + walked[-1][1] * step:
            walked[-1] = (walked[-1][0], walked[-1][1] + 1)
        else:
            walked.append((number, 1))
    assert runs_of(numbers, step) == walked
