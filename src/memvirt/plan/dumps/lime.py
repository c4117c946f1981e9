# SPDX-License-Identifier: Apache-2.0
"""LiME dumps: ranges of physical memory, each behind a header of 32 bytes.

The header has a magic number, a version (1), the first and the last address of the range (the last
one is part of it), and 8 reserved bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

from memvirt.address import PAGE_BYTES, GuestPhysicalAddress, PhysicalPageNumber

from .dump import DumpError, Extent, FileDump

MAGIC = 0x4C694D45
_HEADER = struct.Struct("<IIQQQ")


def write_header(file: IO[bytes], first: GuestPhysicalAddress, size: int) -> None:
    """The header of a range of ``size`` bytes (more than 0), which its content has to follow."""
    file.write(_HEADER.pack(MAGIC, 1, first, first + size - 1, 0))


def open_lime(path: Path) -> FileDump:
    """Raises DumpError."""
    extents, at, length = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while at < length:
            file.seek(at)
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size:
                raise DumpError(f"{path}: is cut off in the header at byte {at:,}")
            magic, version, first, last, _ = _HEADER.unpack(head)
            if magic != MAGIC or version != 1 or last < first:
                raise DumpError(f"{path}: no LiME header (version 1) at byte {at:,}")
            size = last - first + 1
            at += _HEADER.size
            if at + size > length:
                raise DumpError(
                    f"{path}: is cut off: the range at {first:#x} has {size:,} bytes, the file "
                    f"{length - at:,}"
                )
            # A range may begin or end inside a page: what is no whole page is no page of a guest.
            skip = -first % PAGE_BYTES
            count = max(size - skip, 0) // PAGE_BYTES
            if count:
                ppn = PhysicalPageNumber((first + skip) // PAGE_BYTES)
                extents.append(Extent(ppn, count, at + skip))
            at += size
    if not extents:
        raise DumpError(f"{path}: holds no whole page")
    return FileDump(path, "LiME", extents)
