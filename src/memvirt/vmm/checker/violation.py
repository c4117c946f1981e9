# SPDX-License-Identifier: Apache-2.0
"""What a broken invariant is, and how many of a kind are told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MOST_TOLD = 16  # of one rule about one structure: the first few say what went wrong


class CheckLevel(IntEnum):
    """How much is audited; each level includes those below it."""

    METADATA = 1  # who owns each frame and each slot; what every page's state says
    MEMORY = 2  # and page tables, cached translations and zeroed frames, entry by entry
    STORES = 3  # and every page that a store keeps is read back


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken invariant: which, where, and both sides of the mismatch."""

    invariant: str
    where: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.where}: found {self.found}, expected {self.expected}"


class Told:
    """Indices of the violations of one rule, the first MOST_TOLD of them, then their number."""

    def __init__(self, invariant: str, what: str) -> None:
        self._invariant = invariant
        self._what = what
        self._rest = 0

    def first(self, wrong: Array) -> list[int]:
        """The indices to tell of. ``wrong`` is a mask, or the indices themselves."""
        indices = np.flatnonzero(wrong) if wrong.dtype == np.bool_ else wrong
        self._rest = max(int(indices.size) - MOST_TOLD, 0)
        return [int(index) for index in indices[:MOST_TOLD]]

    def rest(self) -> Iterator[Violation]:
        """One violation that stands for all that were not told."""
        if self._rest:
            yield Violation(self._invariant, self._what, f"{self._rest} more like these", "none")
