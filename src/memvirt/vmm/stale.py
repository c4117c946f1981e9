# SPDX-License-Identifier: Apache-2.0
"""What the host changed under a stopped processor, which drops it before it runs again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from memvirt.address import MpnArray, PpnArray


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
    mpns: MpnArray
    shared: np.ndarray[Any, np.dtype[np.bool_]]


def _no_pages(flush: bool) -> Stale:
    none = np.zeros(0, np.int64)
    return Stale(flush, PpnArray(none), MpnArray(none), none.astype(bool))


_NOTHING = _no_pages(False)
_FLUSH_ONLY = _no_pages(True)


class StaleLog:
    """Collects what becomes stale until the processor asks."""

    def __init__(self) -> None:
        self._flush = False
        self._ppns: list[PpnArray] = []
        self._mpns: list[MpnArray] = []
        self._shared: list[np.ndarray[Any, np.dtype[np.bool_]]] = []

    def flush(self) -> None:
        """Every translation the processor keeps is stale."""
        self._flush = True

    def add(
        self,
        ppns: PpnArray,
        mpns: MpnArray,
        shared: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
    ) -> None:
        """Pages ``ppns`` leave frames ``mpns``, or their content there changes (arrays of their
        own, which the caller leaves alone). Without ``shared`` no other page is in those frames.
        """
        self._ppns.append(ppns)
        self._mpns.append(mpns)
        self._shared.append(np.zeros(ppns.size, bool) if shared is None else shared)

    def take(self, *, flush: bool = False) -> Stale:
        """All of it; asking forgets it. ``flush`` adds a reason to flush."""
        flush |= self._flush
        self._flush = False
        if not self._ppns:  # as before most runs
            return _FLUSH_ONLY if flush else _NOTHING
        stale = Stale(
            flush,
            PpnArray(np.concatenate(self._ppns)),
            MpnArray(np.concatenate(self._mpns).astype(np.int64)),
            np.concatenate(self._shared),
        )
        self._ppns, self._mpns, self._shared = [], [], []
        return stale
