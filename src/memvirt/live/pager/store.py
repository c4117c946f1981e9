# SPDX-License-Identifier: Apache-2.0
"""The store of evicted pages: block files that all VMs of one salt share.

Pages of equal content are kept once within a store, and only there: VMs with different salts have
different directories and can learn nothing of each other. A VM without a salt has a store of its
own.

**No reference counts.** The index entries of the VMs (``page_states.py``) are the only truth. A
slot is *taken* by setting its byte in the ``taken-*`` file before its block is written, and becomes
free by *collection*: all indices of the directory are read, and bytes of slots that no entry names
are cleared. A death at any point can leave a slot taken in vain until the next collection, nothing
else. Fault handlers drop entries without asking anybody.

**Writers** (evictors) hold the store's lock (a POSIX record lock: it ends with its process) while
they put blocks *and* set the index entries that name them, so that a collection never misses one.

**Sharing** finds candidates by kind and CRC-32 in a hash table file, compares whole blocks, and
never trusts the checksum. The table is a hint: entries that lead to free or reused slots do no
harm, for the comparison then fails.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memvirt.address import PAGE_BYTES
from memvirt.live.runs import runs_of
from memvirt.size import format_size

from .blocks import (
    BLOCK_BYTES,
    MAXIMUM_SLOTS,
    NO_COPY,
    ZERO_PAGE,
    BlockReader,
    Codec,
    Kind,
    Packer,
    block_path,
    entry_of,
    give_back,
    slot_of,
)
from .sharing_table import SharingTable

_FIRST_SLOTS = 1024
_COLLECT_SECONDS = 1.0  # not more often than that while the store grows,
_COLLECT_SHARE = 20  # nor for more than a twentieth of the time
_LEAST_DROPPED = 4096  # entries; fewer are not worth a collection
_GIVE_BACK_BYTES = 64 << 10  # free runs shorter than that stay allocated

Entries = NDArray[np.uint64]


class StoreError(Exception):
    """Pages cannot be stored; the message says where and why. Nothing has been evicted."""


class StoreFull(StoreError):
    """The disk is full, or the store has reached its limit."""


class _GrowingMap:
    """A file mapped for reading and writing, whose size other processes may change."""

    def __init__(self, path: Path, first_size: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._file).st_size == 0:
            os.posix_fallocate(self._file, 0, first_size)
        self.refresh()

    def refresh(self) -> None:
        self.map = mmap.mmap(self._file, 0)

    def changed(self) -> bool:
        return os.fstat(self._file).st_size != len(self.map)

    def grow(self, size: int) -> None:
        # Allocated, not a hole: a store into the mapping must not meet a full disk.
        os.posix_fallocate(self._file, 0, size)
        self.refresh()

    def close(self) -> None:
        os.close(self._file)


class PageStore:
    """One store, opened for writing. ``limit`` bounds the bytes of taken blocks.

    ``indices`` gives the arrays of entries of all VMs of the store, this one's included; it is
    called for collections, under the lock.
    """

    def __init__(
        self,
        directory: Path,
        codec: Codec,
        limit: int | None,
        indices: Callable[[], Sequence[Entries]],
    ) -> None:
        self._directory = directory
        self._limit = limit
        self._indices = indices
        self._packer = Packer(codec)
        create_block_files(directory)
        flags = os.O_RDWR | os.O_CLOEXEC
        self._files = {kind: os.open(block_path(directory, kind), flags) for kind in BLOCK_BYTES}
        self._lock_file = os.open(directory / "lock", flags | os.O_CREAT, 0o600)
        self._taken = {
            kind: _GrowingMap(directory / f"taken-{size}", _FIRST_SLOTS)
            for kind, size in BLOCK_BYTES.items()
        }
        self._next = dict.fromkeys(BLOCK_BYTES, 0)
        self._sharing = SharingTable(directory / "sharing")
        self._reader = BlockReader(directory)
        self._grown = False
        self._dropped = 0
        self._collected_at = 0.0
        self._collect_took = 0.0
        self.shared = 0
        self.zero_pages = 0

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store's lock: put blocks and set their entries inside one such block."""
        fcntl.lockf(self._lock_file, fcntl.LOCK_EX)
        try:
            for taken in self._taken.values():
                if taken.changed():
                    taken.refresh()
            self._sharing.refresh()
            yield
        finally:
            fcntl.lockf(self._lock_file, fcntl.LOCK_UN)

    def pack(self, pages: bytes) -> list[tuple[Kind, bytes] | None]:
        """Blocks for a run of pages; None for a page of zeros, which needs none. Needs no lock."""
        size = len(ZERO_PAGE)
        result: list[tuple[Kind, bytes] | None] = []
        for at in range(0, len(pages), size):
            page = pages[at : at + size]
            result.append(None if page == ZERO_PAGE else self._packer.pack(page))
        return result

    def put(self, blocks: Sequence[tuple[Kind, bytes] | None]) -> Entries:
        """Store blocks, under the lock; their entries, NO_COPY for a page of zeros.

        Raises StoreFull or StoreError; then no block is stored.
        """
        entries = np.full(len(blocks), NO_COPY, np.uint64)
        fresh: dict[Kind, dict[int, bytes]] = {kind: {} for kind in BLOCK_BYTES}
        shared = zeros = 0
        try:
            for number, item in enumerate(blocks):
                if item is None:
                    zeros += 1
                    continue
                kind, block = item
                checksum = zlib.crc32(block)
                entry = self._find_equal(kind, block, checksum, fresh[kind])
                if entry == NO_COPY:
                    slot = self._take(kind)
                    fresh[kind][slot] = block
                    entry = entry_of(kind, slot, checksum)
                    self._sharing.insert(entry)
                else:
                    shared += 1
                entries[number] = entry
            for kind, pending in fresh.items():
                self._write(kind, pending)
        except BaseException as error:
            for kind, pending in fresh.items():
                for slot in pending:
                    self._taken[kind].map[slot] = 0
            if isinstance(error, OSError):
                raise self._write_error(error) from error
            raise
        self.shared += shared
        self.zero_pages += zeros
        return entries

    def _write_error(self, error: OSError) -> StoreError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return (StoreFull if full else StoreError)(
            f"{self._directory}: evicted pages cannot be written: {error.strerror}"
        )

    def _find_equal(self, kind: Kind, block: bytes, checksum: int, fresh: dict[int, bytes]) -> int:
        entry = self._sharing.find(kind, checksum)
        if entry == NO_COPY:
            return NO_COPY
        slot = slot_of(entry)
        taken = self._taken[kind].map
        if slot >= len(taken) or not taken[slot]:
            return NO_COPY
        there = fresh.get(slot)
        if there is None:
            there = self._reader.read_block(kind, slot)
        return entry if there == block else NO_COPY

    def _take(self, kind: Kind) -> int:
        """A free slot, marked as taken."""
        taken = self._taken[kind]
        slot = taken.map.find(b"\0", self._next[kind])
        if slot < 0 and self._next[kind]:
            slot = taken.map.find(b"\0")
        if slot < 0:
            self._grown = True
            slots = len(taken.map)
            if slots >= MAXIMUM_SLOTS:
                raise StoreFull(f"{self._directory}: no more slots of {BLOCK_BYTES[kind]} bytes")
            taken.grow(min(slots + max(slots // 2, _FIRST_SLOTS), MAXIMUM_SLOTS))
            slot = slots
        taken.map[slot] = 1
        self._next[kind] = slot + 1
        return slot

    def _write(self, kind: Kind, pending: dict[int, bytes]) -> None:
        """Write blocks, neighbours in one call."""
        size, file = BLOCK_BYTES[kind], self._files[kind]
        slots = sorted(pending)
        start = 0
        for end in range(1, len(slots) + 1):
            if end < len(slots) and slots[end] == slots[end - 1] + 1:
                continue
            data = b"".join(pending[slot] for slot in slots[start:end])
            offset = slots[start] * size
            while data:
                written = os.pwrite(file, data, offset)
                if written == 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                data, offset = data[written:], offset + written
            start = end

    def make_room(self, blocks: int, dropped: int, kept: int) -> None:
        """Call under the lock before ``put``: collect if it is worth it, and check the limit.

        ``blocks`` bounds what will be put (a collection inside ``put`` would free its own blocks,
        which no index names yet). ``dropped`` counts the VM's entries dropped so far, ``kept``
        those it has: once as many have been dropped, half of its blocks may be free. Raises
        StoreFull at the limit.
        """
        most = blocks * PAGE_BYTES
        pause = max(_COLLECT_SECONDS, _COLLECT_SHARE * self._collect_took)
        worth_it = self._grown or dropped - self._dropped > max(kept, _LEAST_DROPPED)
        if worth_it and time.monotonic() - self._collected_at >= pause:
            self.collect()
            self._dropped = dropped
        if self._limit is None or self.taken_bytes() + most <= self._limit:
            return
        self.collect()
        if self.taken_bytes() + most > self._limit:
            raise StoreFull(
                f"{self._directory}: the store has reached its limit of {format_size(self._limit)}"
            )

    def collect(self) -> None:
        """Free the slots no entry names, under the lock, and give long free runs back."""
        begun = time.monotonic()
        indices = self._indices()
        entries = np.unique(np.concatenate(indices)) if indices else np.zeros(0, np.uint64)
        entries = entries[entries != NO_COPY]
        kinds = (entries >> np.uint64(32)) & np.uint64(3)
        slots = ((entries >> np.uint64(34)) - np.uint64(1)).astype(np.int64)
        for kind, size in BLOCK_BYTES.items():
            used = np.zeros(len(self._taken[kind].map), np.uint8)
            used[slots[(kinds == kind) & (slots < len(used))]] = 1
            self._taken[kind].map[:] = used.tobytes()
            self._next[kind] = 0
            for first, count in runs_of(np.flatnonzero(used == 0)):
                if count * size >= _GIVE_BACK_BYTES:
                    give_back(self._files[kind], first * size, count * size)
        self._sharing.rebuild(entries[kinds != Kind.MEMORY_FILE])
        self._grown = False
        self._collected_at = time.monotonic()
        self._collect_took = self._collected_at - begun

    def taken_bytes(self) -> int:
        """Bytes of the taken blocks; of all VMs of this salt."""
        return sum(
            size * int(np.count_nonzero(np.frombuffer(self._taken[kind].map, np.uint8)))
            for kind, size in BLOCK_BYTES.items()
        )

    def close(self) -> None:
        """Close the files. The blocks stay."""
        self._reader.close()
        self._sharing.close()
        for file in (*self._files.values(), self._lock_file):
            os.close(file)
        for taken in self._taken.values():
            taken.close()


def create_block_files(directory: Path) -> None:
    """Make the (empty) block files of a store, where they are missing."""
    for kind in BLOCK_BYTES:
        os.close(os.open(block_path(directory, kind), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
