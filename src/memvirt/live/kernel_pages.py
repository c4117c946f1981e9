# SPDX-License-Identifier: Apache-2.0
"""What the host's kernel says of pages: ``pagemap``, ``kpageflags``, ``kpagecount``.

Source of all formats: Documentation/admin-guide/mm/pagemap.rst, include/uapi/linux/
kernel-page-flags.h. A *page frame number* (PFN) of the host is a machine page number (MPN) here.
Frame numbers, flags and counts need CAP_SYS_ADMIN; without it pagemap still tells which pages are
present and which are swapped.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Self

import numpy as np

from memvirt.address import PAGE_SHIFT

from .errors import AccessDenied, KernelFeatureMissing, ProcessGone
from .process import Process
from .ram import RamLayout

Words = np.ndarray[Any, np.dtype[np.uint64]]

# Bits of a pagemap entry.
PAGEMAP_PRESENT = np.uint64(1 << 63)
PAGEMAP_SWAPPED = np.uint64(1 << 62)
PAGEMAP_FILE_OR_SHARED = np.uint64(1 << 61)
PAGEMAP_EXCLUSIVE = np.uint64(1 << 56)  # mapped exactly once
PAGEMAP_FRAME = np.uint64((1 << 55) - 1)

# Categories of PAGEMAP_SCAN.
SCAN_ZERO, SCAN_HUGE = 1 << 5, 1 << 6

KPAGEFLAGS = (
    "locked", "error", "referenced", "up to date", "dirty", "LRU", "active", "slab", "writeback",
    "reclaim", "buddy", "mapped", "anonymous", "swap cache", "swap-backed", "compound head",
    "compound tail", "huge", "unevictable", "hardware poison", "no page", "KSM", "THP", "offline",
    "zero page", "idle", "page table",
)  # fmt: skip
KSM = np.uint64(1 << KPAGEFLAGS.index("KSM"))
ZERO_PAGE = np.uint64(1 << KPAGEFLAGS.index("zero page"))
# Those worth a word to somebody who asks about one page.
_TOLD = (
    "referenced", "dirty", "active", "writeback", "buddy", "anonymous", "swap cache", "huge",
    "unevictable", "hardware poison", "KSM", "THP", "offline", "zero page", "idle",
)  # fmt: skip
_NEAR = 64  # frames: reading across a smaller gap is cheaper than another call
_READ_BYTES = 1 << 23


def flag_names(flags: int) -> tuple[str, ...]:
    """The flags of a page by name; "file" is said of a mapped page that is not anonymous."""
    names = [name for bit, name in enumerate(KPAGEFLAGS) if flags >> bit & 1 and name in _TOLD]
    mapped = flags >> KPAGEFLAGS.index("mapped") & 1
    if mapped and "anonymous" not in names and "zero page" not in names:
        names.insert(0, "file")
    return tuple(names)


class Pagemap:
    """The ``pagemap`` of one process. Use as a context manager, or ``close`` it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.descriptor = process.open("pagemap")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; may be called again."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def entries(self, host_address: int, pages: int) -> Words:
        """Entries of ``pages`` pages from ``host_address`` on, shape (pages,). Maps nothing.

        Raises ProcessGone.
        """
        out = np.zeros(pages, np.uint64)
        view = out.view(np.uint8).data
        done = 0
        while done < view.nbytes:
            part = view[done : done + _READ_BYTES]
            count = os.preadv(self.descriptor, [part], (host_address >> PAGE_SHIFT) * 8 + done)
            if count == 0:
                self._process.require_alive()
                raise ProcessGone(f"process {self._process.pid} has no memory any more")
            done += count
        return out

    def of_ram(self, layout: RamLayout) -> Words:
        """Entries of all of a VM's pages, by RAM page index."""
        return np.concatenate(
            [self.entries(block.host_address, block.pages) for block in layout.blocks]
        )


class KernelPages:
    """Flags and counts of the host's frames. Needs CAP_SYS_ADMIN.

    Raises AccessDenied or KernelFeatureMissing when it is made.
    """

    def __init__(self) -> None:
        self._flags = self._open("/proc/kpageflags")
        try:
            self._counts = self._open("/proc/kpagecount")
        except BaseException:
            os.close(self._flags)
            raise

    @staticmethod
    def _open(path: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise KernelFeatureMissing(
                    f"{path}: this kernel is built without CONFIG_PROC_PAGE_MONITOR"
                ) from error
            raise AccessDenied(
                f"{path}: {error.strerror}; run memvirt as root (CAP_SYS_ADMIN)"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptors back; may be called again."""
        for descriptor in (self._flags, self._counts):
            if descriptor >= 0:
                os.close(descriptor)
        self._flags = self._counts = -1

    def flags(self, mpns: Words) -> Words:
        """KPAGEFLAGS bits of each frame; 0 for one beyond the machine's memory."""
        return _words_at(self._flags, mpns)

    def counts(self, mpns: Words) -> Words:
        """How often each frame is mapped, by whomever."""
        return _words_at(self._counts, mpns)


def _words_at(descriptor: int, mpns: Words) -> Words:
    """The 64-bit words of a file indexed by frame number, for frames in any order."""
    frames, inverse = np.unique(mpns.astype(np.int64), return_inverse=True)
    out = np.zeros(frames.size, np.uint64)
    if frames.size == 0:
        return out
    cuts = np.flatnonzero(np.diff(frames) > _NEAR) + 1
    for first, last in zip([0, *cuts], [*cuts, frames.size], strict=True):
        low, high = int(frames[first]), int(frames[last - 1]) + 1
        for start in range(low, high, _READ_BYTES // 8):
            stop = min(start + _READ_BYTES // 8, high)
            words = np.frombuffer(os.pread(descriptor, (stop - start) * 8, start * 8), np.uint64)
            a, b = np.searchsorted(frames[first:last], [start, start + words.size])
            out[first + a : first + b] = words[frames[first + a : first + b] - start]
    return np.asarray(out[inverse])
