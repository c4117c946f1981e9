# SPDX-License-Identifier: Apache-2.0
"""The form of a stored page: a block of 1, 2 or 4 KiB, and the index entry that leads to it.

A page that shrinks to a quarter is kept in a block of 1 KiB, one that shrinks to a half in one of
2 KiB, others as they are (ESXi's rule; its compression cache and its swap file are one here: the
files of blocks lie in the page cache as long as the host has memory, and on their disk else).

An *index entry* is all that is needed to read a page back, one 64-bit word; 0 means no copy::

    63            34 33   32 31         0
    | slot, plus 1   | kind | CRC-32     |   CRC-32 of the whole block, padding included
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import zlib
from enum import IntEnum
from pathlib import Path

import lz4.block
import zstandard

from memvirt.address import PAGE_BYTES

NO_COPY = 0
MAXIMUM_SLOTS = (1 << 30) - 1
_KIND_SHIFT, _SLOT_SHIFT, _CRC_MASK = 32, 34, (1 << 32) - 1
_LENGTH_MASK, _ZSTD_FLAG = 0x7FFF, 0x8000
_LENGTH_BYTES = 2
ZERO_PAGE = bytes(PAGE_BYTES)


class Kind(IntEnum):
    """The kind of a block, and with it the file it lies in."""

    QUARTER = 0
    HALF = 1
    WHOLE = 2
    MEMORY_FILE = 3  # a page of the memory file of a snapshot; slot = page of that file, no CRC


BLOCK_BYTES = {Kind.QUARTER: 1024, Kind.HALF: 2048, Kind.WHOLE: PAGE_BYTES}


class Codec(IntEnum):
    """How pages are compressed."""

    LZ4 = 0
    ZSTD = 1


class PageDamaged(Exception):
    """The copy of a page is not what was written; the message names file and slot."""


def entry_of(kind: Kind, slot: int, checksum: int) -> int:
    """The index entry of a block."""
    return (slot + 1) << _SLOT_SHIFT | kind << _KIND_SHIFT | checksum


def kind_of(entry: int) -> Kind:
    return Kind(entry >> _KIND_SHIFT & 3)


def slot_of(entry: int) -> int:
    return (entry >> _SLOT_SHIFT) - 1


class Packer:
    """Turns pages into blocks."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._zstd = zstandard.ZstdCompressor(
            level=1, write_checksum=False, write_content_size=False
        )

    def pack(self, page: bytes) -> tuple[Kind, bytes]:
        """The smallest block that holds ``page``."""
        if self._codec is Codec.LZ4:
            packed = bytes(lz4.block.compress(page, store_size=False))
            head = len(packed)
        else:
            packed = self._zstd.compress(page)
            head = len(packed) | _ZSTD_FLAG
        for kind in (Kind.QUARTER, Kind.HALF):
            size = BLOCK_BYTES[kind]
            if len(packed) + _LENGTH_BYTES <= size:
                return kind, (head.to_bytes(_LENGTH_BYTES, "little") + packed).ljust(size, b"\0")
        return Kind.WHOLE, page


def block_path(directory: Path, kind: Kind) -> Path:
    """The file that holds the blocks of one kind."""
    return directory / f"blocks-{BLOCK_BYTES[kind]}"


class BlockReader:
    """Reads pages back. Any number of processes may read while evictors write.

    ``directory`` is the store's; the block files exist. ``memory_file`` is the descriptor of a
    snapshot's memory file, if entries may lead there.
    """

    def __init__(self, directory: Path, memory_file: int | None = None) -> None:
        self._paths = {kind: block_path(directory, kind) for kind in BLOCK_BYTES}
        self._files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in self._paths.values()]
        self._memory_file = memory_file
        self._zstd = zstandard.ZstdDecompressor()

    def read_block(self, kind: Kind, slot: int) -> bytes:
        """The raw block. Raises OSError; a block behind the file's end is short."""
        size = BLOCK_BYTES[kind]
        return os.pread(self._files[kind], size, slot * size)

    def read_into(self, entry: int, page: memoryview) -> None:
        """Put the page that ``entry`` leads to into ``page`` (4 KiB).

        Raises PageDamaged if it is not what was written, OSError if it cannot be read.
        """
        kind = Kind(entry >> _KIND_SHIFT & 3)
        if kind is Kind.MEMORY_FILE:
            self._read_memory_file(slot_of(entry), page)
            return
        size = 1024 << kind
        slot = (entry >> _SLOT_SHIFT) - 1
        block = os.pread(self._files[kind], size, slot * size)
        if len(block) != size or zlib.crc32(block) != entry & _CRC_MASK:
            raise PageDamaged(f"{self._paths[kind]}: slot {slot} is not what was written")
        if kind is Kind.WHOLE:
            page[:] = block
            return
        head = int.from_bytes(block[:_LENGTH_BYTES], "little")
        packed = block[_LENGTH_BYTES : _LENGTH_BYTES + (head & _LENGTH_MASK)]
        if head & _ZSTD_FLAG:
            page[:] = self._zstd.decompress(packed, max_output_size=PAGE_BYTES)
        else:
            page[:] = lz4.block.decompress(packed, uncompressed_size=PAGE_BYTES)

    def _read_memory_file(self, slot: int, page: memoryview) -> None:
        if self._memory_file is None:
            raise PageDamaged(f"page {slot} lies in a memory file, and none was given")
        got = os.preadv(self._memory_file, [page], slot * PAGE_BYTES)
        if got != PAGE_BYTES:
            raise PageDamaged(f"the memory file ends at {slot * PAGE_BYTES + got:#x}")

    def close(self) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):
                os.close(file)
        self._files = []


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def give_back(file: int, offset: int, size: int) -> None:
    """Return a free range of a block file to its file system, if that can do it."""
    _libc.fallocate(file, 3, offset, size)  # PUNCH_HOLE | KEEP_SIZE; without it space stays ours


def memory_file_entry(page: int) -> int:
    """The entry of page ``page`` of a memory file."""
    return entry_of(Kind.MEMORY_FILE, page, 0)
