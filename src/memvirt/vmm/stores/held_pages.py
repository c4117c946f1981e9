# SPDX-License-Identifier: Apache-2.0
"""The backing store of a VM on its own: pages in the host's memory, compressed, without bound."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np

from memvirt.address import PAGE_BYTES, PhysicalPageNumber, PpnArray
from memvirt.machine.content import Pages

from .backing import PageCorrupted, Slots


class HeldPages:
    """Pages in the host's own memory, checked on return. See ``BackingStore``."""

    wait_ns = 0
    frames = 0  # none of machine memory

    def __init__(self) -> None:
        self._pages: dict[int, tuple[int, bytes]] = {}
        self._next = 0
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._pages)

    def put(self, ppns: PpnArray, contents: Pages) -> Slots:
        """Keep pages; none is ever refused."""
        return np.array([self._put(row.tobytes()) for row in contents], np.int64)

    def _put(self, content: bytes) -> int:
        if self._free:
            slot = self._free.pop()
        else:
            slot, self._next = self._next, self._next + 1
        self._pages[slot] = (zlib.crc32(content), zlib.compress(content, 1))
        return slot

    def oldest(self, count: int) -> list[tuple[PhysicalPageNumber, int]]:
        """None: it is never full."""
        return []

    def read(self, slot: int) -> bytes:
        checksum, packed = self._pages[slot]
        content = zlib.decompress(packed)
        if len(content) != PAGE_BYTES or zlib.crc32(content) != checksum:
            raise PageCorrupted(f"slot {slot}: the page is not what was stored")
        return content

    def take(self, slot: int) -> bytes:
        content = self.read(slot)
        self.discard([slot])
        return content

    def discard(self, slots: Iterable[int]) -> None:
        for slot in slots:
            del self._pages[slot]
            self._free.append(slot)

    def slots_in_use(self) -> Slots:
        """Slots that hold a page."""
        return np.fromiter(self._pages, np.int64, len(self._pages))

    def settle(self) -> None:
        """Nothing to give back."""
