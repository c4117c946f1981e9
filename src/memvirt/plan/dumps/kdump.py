# SPDX-License-Identifier: Apache-2.0
"""kdump-compressed dumps (makedumpfile's format), as QEMU writes them too, also flattened.

Layout (makedumpfile, IMPLEMENTATION; QEMU, include/sysemu/dump.h): a header block, a sub header,
two bitmaps of one size (pages that exist; pages that are in the dump), a descriptor of 24 bytes for
each page that is in the dump (offset, size, flags, page flags), and the pages. The flattened form,
for pipes, is a block of 4096 bytes and then pieces, each behind its offset and size as big-endian
numbers. Pages are stored as they are or with zlib, LZO, snappy or zstd.
"""

from __future__ import annotations

import bisect
import struct
import weakref
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import zstandard

from memvirt.address import PAGE_BYTES, PhysicalPageNumber, PpnArray

from . import lzo
from .dump import DumpError, Pages
from .elf_core import note_registers, note_vmcoreinfo

SIGNATURE, FLATTENED = b"KDUMP   ", b"makedumpfile"
_STATUS_AT = 424  # signature 8, version 4, six names of 65 with padding, two words of time
_SUB_HEADER = struct.Struct("<Qii11Q")
_DESCRIPTOR = struct.Struct("<qIIQ")
_ZLIB, _LZO, _SNAPPY, _ZSTD = 1, 2, 4, 32
_FLAT_HEADER = 4096
_MOST_SUB_BLOCKS = 1 << 16
_MOST_TEXT = 1 << 16


def _snappy(packed: bytes) -> bytes:
    return bytes(pa.Codec("snappy").decompress(packed, decompressed_size=PAGE_BYTES))


def _lzo(packed: bytes) -> bytes:
    return lzo.decompress(packed, PAGE_BYTES)


def _zstd(packed: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(packed, max_output_size=PAGE_BYTES)


_DECODERS: dict[int, Callable[[bytes], bytes]] = {
    0: lambda packed: packed,
    _ZLIB: zlib.decompress,
    _LZO: _lzo,
    _SNAPPY: _snappy,
    _ZSTD: _zstd,
}

_DAMAGE = (zlib.error, lzo.LzoError, zstandard.ZstdError, OSError, pa.ArrowException)


_MOST_AT_ONCE = 1 << 31  # a bitmap of 64 TiB of memory


class _File:
    """Bytes of a dump by their offset, whether it is flattened or not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)
        self._length = path.stat().st_size
        self._offsets: list[int] = []
        self._pieces: list[tuple[int, int, int]] = []  # (offset, size, place in the file)
        if self._file.read(12) == FLATTENED:
            self._index()

    def _index(self) -> None:
        at, length = _FLAT_HEADER, self._length
        pieces: dict[int, tuple[int, int, int]] = {}
        while True:
            self._file.seek(at)
            head = self._file.read(16)
            if len(head) < 16:
                raise DumpError(f"{self.path}: is cut off: its flattened form has no end mark")
            offset, size = struct.unpack(">qq", head)
            if offset == -1:
                break
            if size < 0 or at + 16 + size > length:
                raise DumpError(f"{self.path}: is cut off at byte {at:,}")
            pieces[offset] = (offset, size, at + 16)  # a later piece replaces an earlier one
            at += 16 + size
        self._offsets = sorted(pieces)
        self._pieces = [pieces[offset] for offset in self._offsets]

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on. Raises DumpError if they are not there."""
        most = _MOST_AT_ONCE if self._offsets else self._length - offset
        if size > most:  # before so much memory is taken for them
            raise DumpError(f"{self.path}: is cut off: {size} bytes at {offset:,} are missing")
        if not self._offsets:
            self._file.seek(offset)
            data = self._file.read(size)
        else:
            data = self._read_pieces(offset, size)
        if len(data) != size:
            raise DumpError(f"{self.path}: is cut off: {size} bytes at {offset:,} are missing")
        return data

    def _read_pieces(self, offset: int, size: int) -> bytes:
        out = b""
        while size > 0:
            number = bisect.bisect_right(self._offsets, offset) - 1
            if number < 0:
                break
            start, length, place = self._pieces[number]
            part = min(size, start + length - offset)
            if part > 0:
                self._file.seek(place + offset - start)
                out += self._file.read(part)
            elif number + 1 < len(self._offsets):  # nothing was written there: zeroes
                part = min(size, self._offsets[number + 1] - offset)
                out += bytes(part)
            else:
                break
            offset, size = offset + part, size - part
        return out


class KdumpDump:
    """A kdump-compressed dump."""

    kind = "kdump"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _File(path)
        head = self._file.read(0, _STATUS_AT + 40)
        if head[:8] != SIGNATURE:
            raise DumpError(f"{path}: is no kdump-compressed dump")
        (version,) = struct.unpack_from("<i", head, 8)
        _, block, sub_blocks, bitmap_blocks, max_mapnr = struct.unpack_from(
            "<IiiII", head, _STATUS_AT
        )
        if block != PAGE_BYTES:
            raise DumpError(f"{path}: has pages of {block} bytes; 4096 are needed")
        if not 1 <= sub_blocks <= _MOST_SUB_BLOCKS:
            raise DumpError(f"{path}: damaged header: a sub header of {sub_blocks} blocks")
        sub = _SUB_HEADER.unpack(self._file.read(block, _SUB_HEADER.size))
        if version >= 6 and sub[13]:
            max_mapnr = sub[13]
        if sub[2]:
            raise DumpError(f"{path}: is one part of a split dump; join the parts first")
        text_at, text_size, note_at, note_size = sub[5:9]
        self.vmcoreinfo = b""
        if version >= 3 and 0 < text_size <= _MOST_TEXT:
            self.vmcoreinfo = self._file.read(text_at, text_size)
        self.registers: Mapping[str, int] = {}
        if version >= 4 and note_size and note_size < 64 << 20:
            notes = self._file.read(note_at, note_size)
            self.registers = note_registers(notes)
            self.vmcoreinfo = self.vmcoreinfo or note_vmcoreinfo(notes)
        half = bitmap_blocks // 2 * block
        bitmap_at = (1 + sub_blocks) * block
        bits = np.frombuffer(self._file.read(bitmap_at + half, half), np.uint8)
        stored = np.unpackbits(bits, bitorder="little")[:max_mapnr]
        self._ppns = PpnArray(np.flatnonzero(stored).astype(np.int64))
        self._descriptors_at = bitmap_at + 2 * half
        if not self._ppns.size:
            raise DumpError(f"{path}: holds no page")

    @property
    def pages(self) -> int:
        return int(self._ppns.size)

    def ppns(self, first: int, count: int) -> PpnArray:
        return self._ppns[first : first + count]

    def read(self, first: int, count: int) -> Pages:
        table = self._file.read(
            self._descriptors_at + first * _DESCRIPTOR.size, count * _DESCRIPTOR.size
        )
        out = np.empty((count, PAGE_BYTES), np.uint8)
        last: tuple[int, bytes] = (-1, b"")
        for row, (offset, size, flags, _) in enumerate(_DESCRIPTOR.iter_unpack(table)):
            if offset != last[0]:  # all zero pages of a dump are stored once
                last = (offset, self._page(offset, size, flags, self._ppns[first + row]))
            out[row] = np.frombuffer(last[1], np.uint8)
        return out

    def _page(self, offset: int, size: int, flags: int, ppn: PhysicalPageNumber) -> bytes:
        decode = _DECODERS.get(flags & (_ZLIB | _LZO | _SNAPPY | _ZSTD))
        if decode is None or not 0 < size <= 2 * PAGE_BYTES:
            raise DumpError(f"{self.path}: damaged descriptor of PPN {ppn:#x}")
        try:
            page = decode(self._file.read(offset, size))
        except _DAMAGE as error:
            raise DumpError(f"{self.path}: PPN {ppn:#x} does not decompress ({error})") from error
        if len(page) != PAGE_BYTES:
            raise DumpError(f"{self.path}: PPN {ppn:#x} has {len(page)} bytes")
        return page

    def data_ranges(self, first: int, count: int) -> list[tuple[int, int]]:
        return [(first, count)]

    def position(self, ppn: PhysicalPageNumber) -> int:
        at = int(np.searchsorted(self._ppns, ppn))
        return at if at < self.pages and self._ppns[at] == ppn else -1
