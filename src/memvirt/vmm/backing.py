# SPDX-License-Identifier: Apache-2.0
"""Where the content of pages without a frame is kept until the guest wants it back.

The VMM knows two such places, by protocol only: a *backing store* (the swap file of a managed VM)
and, before it, *compressed pages*. Policy and implementation are the VMkernel's.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from memvirt.address import PAGE_BYTES
from memvirt.machine.content import Pages

Slots = np.ndarray[tuple[int], np.dtype[np.int64]]
REFUSED = -1  # the page cannot be kept here
FULL = -2  # it could, had older pages left (compressed pages only)


class BackingStoreError(Exception):
    """A page cannot be had back now: nothing is lost, the same request may succeed later."""


class PageCorrupted(Exception):
    """A page came back from where it was kept other than it went in. It is lost."""


class BackingStore(Protocol):
    """A store of 4 KiB pages by slot. ``take`` gives back exactly what ``put`` was given.

    ``wait_ns`` is the virtual time a guest waits for ``take``. ``read`` and ``take`` raise
    BackingStoreError, with the page kept, or PageCorrupted.
    """

    wait_ns: int

    def put(self, contents: Pages) -> Slots:
        """Keep pages (rows of 4096 bytes): a slot each, or REFUSED."""
        ...

    def take(self, slot: int) -> bytes: ...
    def read(self, slot: int) -> bytes: ...
    def discard(self, slots: Iterable[int]) -> None: ...

    def slots_in_use(self) -> Slots:
        """Slots that hold a page, in any order: for the checker."""
        ...


class CompressedPages(Protocol):
    """A bounded store of compressed pages in machine memory, oldest first out."""

    wait_ns: int

    @property
    def frames(self) -> int:
        """Frames it takes."""
        ...

    def put(self, ppns: np.ndarray[Any, Any], contents: Pages) -> Slots:
        """Keep pages that compress well: a slot each, or REFUSED, or FULL."""
        ...

    def oldest(self, count: int) -> list[tuple[int, int]]:
        """(PPN, slot) of the ``count`` pages kept longest."""
        ...

    def take(self, slot: int) -> bytes: ...
    def read(self, slot: int) -> bytes: ...
    def discard(self, slots: Iterable[int]) -> None: ...

    def slots_in_use(self) -> Slots:
        """Slots that hold a page, in any order: for the checker."""
        ...

    def settle(self) -> None:
        """Give back frames that have become empty. Called with every processor stopped."""
        ...


class HeldPages:
    """A backing store in the host's own memory: compressed, and checked on return."""

    wait_ns = 0

    def __init__(self) -> None:
        self._pages: dict[int, tuple[int, bytes]] = {}
        self._next = 0
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def bytes_held(self) -> int:
        """Bytes of host memory the held pages take."""
        return sum(len(packed) for _, packed in self._pages.values())

    def put(self, contents: Pages) -> Slots:
        return np.array([self._put(row.tobytes()) for row in contents], np.int64)

    def _put(self, content: bytes) -> int:
        if self._free:
            slot = self._free.pop()
        else:
            slot, self._next = self._next, self._next + 1
        self._pages[slot] = (zlib.crc32(content), zlib.compress(content, 1))
        return slot

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
        return np.fromiter(self._pages, np.int64, len(self._pages))
