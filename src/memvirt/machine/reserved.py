# SPDX-License-Identifier: Apache-2.0
"""Large arrays that take memory only where they are used."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt


def reserved_zeros(count: int, dtype: npt.DTypeLike) -> np.ndarray[tuple[int], np.dtype[Any]]:
    """``count`` zeroes, shape (count,): address space that gets memory page by page when written.

    ``numpy.zeros`` promises no such thing: the C library's ``calloc`` takes and clears memory that
    was freed before, if it has a piece that is large enough.
    """
    size = max(count * np.dtype(dtype).itemsize, mmap.PAGESIZE)
    mapping = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(mapping, dtype, count)
