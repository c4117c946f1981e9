# SPDX-License-Identifier: Apache-2.0
"""Neighbours among numbers: what is beside each other is read, advised or freed at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def runs_of(numbers: NDArray[np.integer[Any]], step: int = 1) -> list[tuple[int, int]]:
    """Runs of ``numbers``, shape (n,), ascending, that follow each other by ``step``.

    Each run as (first, how many). Of a mask: the runs of ``numpy.flatnonzero(mask)``.
    """
    if numbers.size == 0:
        return []
    cuts = np.flatnonzero(np.diff(numbers) != step) + 1
    starts = np.concatenate(([0], cuts))
    ends = np.concatenate((cuts, [numbers.size]))
    return [(int(numbers[a]), int(b - a)) for a, b in zip(starts, ends, strict=True)]
