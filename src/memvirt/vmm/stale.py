# SPDX-License-Identifier: Apache-2.0
"""What the host changed under a stopped processor, which drops it before it runs again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

PpnArray = np.ndarray[Any, np.dtype[np.int64]]
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Stale:
    """What the processor must drop before it runs guest code.

    ``flush``: every translation it keeps. ``ppns`` and ``mpns`` (int64, in the order of events): a
    page that is no longer in that frame, or whose content the host has changed there; whatever the
    processor derived from the frame's content (translated code) is void. ``shared`` (bool): other
    pages were in the frame too.
    """

    flush: bool
    ppns: PpnArray
    mpns: PpnArray
    shared: np.ndarray[Any, np.dtype[np.bool_]]


class StaleLog:
    """Collects what becomes stale until the processor asks."""

    def __init__(self) -> None:
        self._flush = False
        self._parts: list[tuple[PpnArray, PpnArray, PpnArray]] = []

    def flush(self) -> None:
        """Every translation the processor keeps is stale."""
        self._flush = True

    def add(self, ppns: PpnArray, mpns: np.ndarray[Any, Any], shared: Any) -> None:
        """Pages ``ppns`` leave frames ``mpns``, or their content there changes."""
        self._parts.append(
            (ppns, np.asarray(mpns, np.int64), np.broadcast_to(shared, ppns.shape).astype(np.int64))
        )

    def take(self, *, flush: bool = False) -> Stale:
        """All of it; asking forgets it. ``flush`` adds a reason to flush."""
        ppns, mpns, shared = (
            np.concatenate(parts) for parts in zip((_NONE,) * 3, *self._parts, strict=True)
        )
        stale = Stale(self._flush or flush, ppns, mpns, shared != 0)
        self._flush, self._parts = False, []
        return stale
