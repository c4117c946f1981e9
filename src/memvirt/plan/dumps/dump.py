# SPDX-License-Identifier: Apache-2.0
"""What every dump can answer: which guest-physical pages it holds, and their content."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from memvirt.address import PAGE_BYTES, PhysicalPageNumber, PpnArray
from memvirt.errors import MemvirtError

Pages = np.ndarray[Any, np.dtype[np.uint8]]


class DumpError(MemvirtError):
    """A file that is no dump, or a damaged one; the message is one line that names it."""


class Dump(Protocol):
    """A dump, open. Pages are counted as the dump holds them: position 0 to ``pages`` - 1."""

    @property
    def kind(self) -> str: ...

    @property
    def pages(self) -> int: ...

    @property
    def registers(self) -> Mapping[str, int]:
        """Registers of the first processor the dump tells of ("cr3"); empty if it has none."""
        ...

    @property
    def vmcoreinfo(self) -> bytes:
        """What the guest's kernel tells of itself, if the dump has a note of it; else empty."""
        ...

    def ppns(self, first: int, count: int) -> PpnArray:
        """Physical page numbers of ``count`` pages from position ``first``."""
        ...

    def read(self, first: int, count: int) -> Pages:
        """Content of those pages: shape (count, 4096). Raises DumpError."""
        ...

    def data_ranges(self, first: int, count: int) -> list[tuple[int, int]]:
        """(position, count) of the parts that may hold anything but zeroes."""
        ...

    def position(self, ppn: PhysicalPageNumber) -> int:
        """Position of a page by its number; -1 if the dump does not hold it."""
        ...


@dataclass(frozen=True, slots=True)
class Extent:
    """``count`` consecutive pages: from ``ppn``, at byte ``offset`` of the file."""

    ppn: PhysicalPageNumber
    count: int
    offset: int


@dataclass
class FileDump:
    """A dump whose pages lie uncompressed in a file, in extents of consecutive pages."""

    path: Path
    kind: str
    extents: list[Extent]
    registers: Mapping[str, int] = field(default_factory=dict)
    vmcoreinfo: bytes = b""

    def __post_init__(self) -> None:
        self.extents.sort(key=lambda extent: extent.ppn)
        counts = np.array([extent.count for extent in self.extents], np.int64)
        self._starts = np.concatenate(([0], np.cumsum(counts)))
        self._first = np.array([extent.ppn for extent in self.extents], np.int64)
        for before, after in zip(self.extents, self.extents[1:], strict=False):
            if before.ppn + before.count > after.ppn:
                raise DumpError(f"{self.path}: holds PPN {after.ppn:#x} twice")
        self._file = self.path.open("rb")
        weakref.finalize(self, self._file.close)

    @property
    def pages(self) -> int:
        return int(self._starts[-1])

    def _parts(self, first: int, count: int) -> list[tuple[Extent, int, int, int]]:
        """(extent, page in it, position, count) of the pieces of a range."""
        out = []
        number = int(np.searchsorted(self._starts, first, side="right")) - 1
        while count > 0:
            extent = self.extents[number]
            inside = first - int(self._starts[number])
            part = min(count, extent.count - inside)
            out.append((extent, inside, first, part))
            first, count, number = first + part, count - part, number + 1
        return out

    def ppns(self, first: int, count: int) -> PpnArray:
        parts = [
            np.arange(extent.ppn + inside, extent.ppn + inside + part, dtype=np.int64)
            for extent, inside, _, part in self._parts(first, count)
        ]
        return PpnArray(np.concatenate(parts) if parts else np.zeros(0, np.int64))

    def read(self, first: int, count: int) -> Pages:
        out = np.empty((count, PAGE_BYTES), np.uint8)
        done = 0
        for extent, inside, _, part in self._parts(first, count):
            view = out[done : done + part].data.cast("B")
            got = os.preadv(self._file.fileno(), [view], extent.offset + inside * PAGE_BYTES)
            while 0 < got < part * PAGE_BYTES:
                more = os.preadv(
                    self._file.fileno(), [view[got:]], extent.offset + inside * PAGE_BYTES + got
                )
                if more == 0:
                    break
                got += more
            if got != part * PAGE_BYTES:
                raise DumpError(f"{self.path}: ends in the middle of PPN {extent.ppn + inside:#x}")
            done += part
        return out

    def data_ranges(self, first: int, count: int) -> list[tuple[int, int]]:
        """Holes of a sparse file are zeroes that need not be read."""
        out: list[tuple[int, int]] = []
        for extent, inside, position, part in self._parts(first, count):
            start = extent.offset + inside * PAGE_BYTES
            end, at = start + part * PAGE_BYTES, start
            while at < end:
                try:
                    data = os.lseek(self._file.fileno(), at, os.SEEK_DATA)
                    hole = os.lseek(self._file.fileno(), data, os.SEEK_HOLE)
                except OSError as error:
                    if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                        break
                    data, hole = at, end
                if data >= end:
                    break
                low = (max(data, at) - start) // PAGE_BYTES
                high = -(-(min(hole, end) - start) // PAGE_BYTES)
                out.append((position + low, high - low))
                at = max(hole, at + 1)
        return out

    def position(self, ppn: PhysicalPageNumber) -> int:
        number = int(np.searchsorted(self._first, ppn, side="right")) - 1
        if number < 0 or ppn >= self.extents[number].ppn + self.extents[number].count:
            return -1
        return int(self._starts[number]) + ppn - self.extents[number].ppn
