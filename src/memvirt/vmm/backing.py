# SPDX-License-Identifier: Apache-2.0
"""Where the content of unmapped pages is kept aside until the guest wants it back."""

from __future__ import annotations

import zlib
from typing import Protocol

from memvirt.address import PAGE_BYTES


class BackingStore(Protocol):
    """A store of 4 KiB pages by slot. ``take`` gives back exactly what ``put`` was given.

    ``drop`` frees a slot whose content nobody wants any more, without reading it.
    """

    def put(self, content: bytes) -> int: ...
    def take(self, slot: int) -> bytes: ...
    def read(self, slot: int) -> bytes: ...
    def drop(self, slot: int) -> None: ...


class BackingStoreError(Exception):
    """A page came back from its backing store other than it went in."""


class HeldPages:
    """A backing store in the host's own memory: compressed, and checked on return."""

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

    def put(self, content: bytes) -> int:
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
            raise BackingStoreError(f"slot {slot}: the page is not what was stored")
        return content

    def take(self, slot: int) -> bytes:
        content = self.read(slot)
        self.drop(slot)
        return content

    def drop(self, slot: int) -> None:
        del self._pages[slot]
        self._free.append(slot)
