# SPDX-License-Identifier: Apache-2.0
"""A hash table in a file: kind and CRC-32 of a block -> the index entry of one such block.

Open addressing with linear probing over 64-bit words; a word is an index entry, which holds the
key (its kind and CRC-32) and the slot. All access is under the store's lock.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .blocks import Kind

_FIRST_WORDS = 1 << 12
_KEY_MASK = (1 << 34) - 1  # kind and CRC-32 of an entry
_SPREAD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: Knuth, TAOCP vol. 3, 6.4
_WORD_MASK = (1 << 64) - 1
_MOST_PROBES = 64


class SharingTable:
    """The table; a hint, whose entries must be verified."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._file).st_size == 0:
            os.posix_fallocate(self._file, 0, 8 * _FIRST_WORDS)
        self._open()

    def _open(self) -> None:
        self._map = mmap.mmap(self._file, 0)
        self._words = memoryview(self._map).cast("Q")
        self._bits = len(self._words).bit_length() - 1
        self._filled = int(np.count_nonzero(np.frombuffer(self._map, np.uint64)))

    def refresh(self) -> None:
        """See what other processes did: call when the lock has been taken."""
        if os.fstat(self._file).st_size != 8 * len(self._words):
            self._open()

    def _position(self, key: int) -> int:
        return (key * _SPREAD & _WORD_MASK) >> (64 - self._bits)

    def find(self, kind: Kind, checksum: int) -> int:
        """An entry with this kind and checksum, or 0."""
        key = kind << 32 | checksum
        at, mask = self._position(key), len(self._words) - 1
        for _ in range(_MOST_PROBES):
            word = self._words[at]
            if word == 0 or word & _KEY_MASK == key:
                return word
            at = (at + 1) & mask
        return 0

    def insert(self, entry: int) -> None:
        """Remember an entry; it replaces one with the same key."""
        if 2 * self._filled >= len(self._words):
            self._grow()
        key = entry & _KEY_MASK
        at, mask = self._position(key), len(self._words) - 1
        for _ in range(_MOST_PROBES):
            word = self._words[at]
            if word == 0 or word & _KEY_MASK == key:
                self._filled += word == 0
                self._words[at] = entry
                return
            at = (at + 1) & mask

    def _grow(self) -> None:
        there = np.frombuffer(self._map, np.uint64).copy()
        os.posix_fallocate(self._file, 0, 16 * len(self._words))
        self._open()
        self.rebuild(there[there != 0])

    def rebuild(self, entries: NDArray[np.uint64]) -> None:
        """Forget everything but ``entries``."""
        while 2 * len(entries) >= len(self._words):
            os.posix_fallocate(self._file, 0, 16 * len(self._words))
            self._open()
        words = np.zeros(len(self._words), np.uint64)
        keys = entries & np.uint64(_KEY_MASK)
        with np.errstate(over="ignore"):
            at = (keys * np.uint64(_SPREAD)) >> np.uint64(64 - self._bits)
        at = at.astype(np.int64)
        left = np.arange(len(entries))
        for _ in range(_MOST_PROBES):
            if len(left) == 0:
                break
            # Of those that want one empty place the first gets it; the others go on.
            empty = left[words[at[left]] == 0]
            places, first = np.unique(at[empty], return_index=True)
            words[places] = entries[empty[first]]
            left = left[words[at[left]] != entries[left]]
            at[left] = (at[left] + 1) & (len(words) - 1)
        self._map[:] = words.tobytes()
        self._filled = int(np.count_nonzero(words))

    def close(self) -> None:
        os.close(self._file)
