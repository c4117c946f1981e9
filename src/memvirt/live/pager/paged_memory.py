# SPDX-License-Identifier: Apache-2.0
"""The memory of a paged VM: regions of a process's address space, and the file behind each.

``PagedMemory`` is what the page-state machine needs of it, ``VirtualMachineMemory`` the real one.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memvirt.address import PAGE_BYTES, HostVirtualAddress

from .page_states import PageIndex
from .userfaultfd import UserFaultFd

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


@dataclass(frozen=True)
class Region:
    """One registered range of the process's memory.

    ``file_offset`` is where it begins in its backing file, ``first_page`` the PageIndex of its
    first page.
    """

    start: HostVirtualAddress
    size: int
    file_offset: int
    first_page: PageIndex

    @property
    def pages(self) -> int:
        return self.size // PAGE_BYTES

    @property
    def end(self) -> int:
        return self.start + self.size


class PagedMemory(Protocol):
    """What the page-state machine does to memory.

    Every method but ``punch`` and ``present`` may raise EventPending: nothing has been done then,
    and events must be read first. All may raise ProcessGone.
    """

    def fill(self, page: PageIndex, content: memoryview) -> None:
        """Give a missing page its content and wake who waits. Raises AlreadyPresent."""

    def zero(self, page: PageIndex) -> None:
        """Give a missing page zeros and wake who waits. Raises AlreadyPresent."""

    def wake(self, first: PageIndex, count: int) -> None:
        """Whoever waits for these pages tries again."""

    def write_protect(self, first: PageIndex, count: int) -> None:
        """Any write to these pages becomes a fault, whether they are mapped or not."""

    def allow_writes(self, first: PageIndex, count: int) -> None:
        """Undo ``write_protect`` and wake who waits to write."""

    def punch(self, first: PageIndex, count: int) -> None:
        """Make the pages holes. Causes no event."""

    def present(self) -> NDArray[np.bool_]:
        """For each page, whether it is there (True) or a hole."""


class VirtualMachineMemory:
    """The regions of one VM, reached through its userfaultfd and its backing files.

    ``files`` has one descriptor for each region, opened for reading and writing, or None where
    the memory has no file (a hand-off of anonymous memory): such pages can be restored, never
    evicted.
    """

    def __init__(
        self, fault_descriptor: UserFaultFd, regions: tuple[Region, ...], files: list[int | None]
    ) -> None:
        self._faults = fault_descriptor
        self.regions = regions
        self.files = files
        self._only = regions[0] if len(regions) == 1 else None
        # True if every region has a file to read and punch.
        self.evictable = all(file is not None for file in files)

    @property
    def pages(self) -> int:
        return sum(region.pages for region in self.regions)

    def page_at(self, address: HostVirtualAddress) -> PageIndex | None:
        """The page that holds an address of the process, None outside every region."""
        for region in self.regions:
            if region.start <= address < region.end:
                return PageIndex(region.first_page + (address - region.start) // PAGE_BYTES)
        return None

    def _address(self, page: PageIndex) -> HostVirtualAddress:
        region = self._only
        if region is None:
            region = next(r for r in self.regions if page < r.first_page + r.pages)
        return HostVirtualAddress(region.start + (page - region.first_page) * PAGE_BYTES)

    def pieces(self, first: PageIndex, count: int) -> Iterator[tuple[int, PageIndex, int]]:
        """A run of pages cut at the ends of regions: (number of the region, first, count)."""
        end = first + count
        for number, region in enumerate(self.regions):
            begin = max(first, region.first_page)
            stop = min(end, region.first_page + region.pages)
            if begin < stop:
                yield number, PageIndex(begin), stop - begin

    def fill(self, page: PageIndex, content: memoryview) -> None:
        source = ctypes.addressof(ctypes.c_char.from_buffer(content))
        self._faults.copy(self._address(page), source)

    def zero(self, page: PageIndex) -> None:
        self._faults.zero(self._address(page))

    def wake(self, first: PageIndex, count: int) -> None:
        for _, begin, length in self.pieces(first, count):
            self._faults.wake(self._address(begin), length * PAGE_BYTES)

    def write_protect(self, first: PageIndex, count: int) -> None:
        for _, begin, length in self.pieces(first, count):
            self._faults.write_protect(self._address(begin), length * PAGE_BYTES)

    def allow_writes(self, first: PageIndex, count: int) -> None:
        if not self.evictable:
            return  # never write-protected, and not registered for it
        if count == 1:
            self._faults.allow_writes(self._address(first), PAGE_BYTES)
            return
        for _, begin, length in self.pieces(first, count):
            self._faults.allow_writes(self._address(begin), length * PAGE_BYTES)

    def _place(self, number: int, first: PageIndex) -> tuple[int, int]:
        """The file of a region and the offset of a page in it."""
        file, region = self.files[number], self.regions[number]
        if file is None:
            raise ValueError(f"region {number} has no file")
        return file, region.file_offset + (first - region.first_page) * PAGE_BYTES

    def punch(self, first: PageIndex, count: int) -> None:
        for number, begin, length in self.pieces(first, count):
            file, offset = self._place(number, begin)
            if _libc.fallocate(file, _PUNCH_HOLE | _KEEP_SIZE, offset, length * PAGE_BYTES) != 0:
                code = ctypes.get_errno()
                raise OSError(code, f"cannot punch the VM's memory: {os.strerror(code)}")

    def read(self, first: PageIndex, count: int) -> bytes:
        """The content of a run of pages; holes are zeros and stay holes."""
        parts = []
        for number, begin, length in self.pieces(first, count):
            file, offset = self._place(number, begin)
            parts.append(os.pread(file, length * PAGE_BYTES, offset))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def present(self) -> NDArray[np.bool_]:
        result = np.zeros(self.pages, bool)
        for file, region in zip(self.files, self.regions, strict=True):
            if file is None:
                continue
            at, end = region.file_offset, region.file_offset + region.size
            while at < end:
                try:
                    data = os.lseek(file, at, os.SEEK_DATA)
                except OSError as error:
                    if error.errno == errno.ENXIO:  # only a hole is left
                        break
                    raise
                at = min(os.lseek(file, data, os.SEEK_HOLE), end)
                if data < end:
                    begin = region.first_page + (data - region.file_offset) // PAGE_BYTES
                    result[begin : begin + -(-(at - data) // PAGE_BYTES)] = True
        return result

    def resident_bytes(self) -> int:
        """Memory that the backing files hold, from their block counts."""
        seen: dict[int, int] = {}
        for file in self.files:
            if file is not None:
                status = os.fstat(file)
                seen[status.st_ino] = status.st_blocks * 512
        return sum(seen.values())

    def close(self) -> None:
        """Close the files (not the userfaultfd)."""
        for file in self.files:
            if file is not None:
                os.close(file)
        self.files = []


class PageBuffer:
    """One page of our own memory that UFFDIO_COPY can read from."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, PAGE_BYTES)
        self.view = memoryview(self._map)
