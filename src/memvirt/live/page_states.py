# SPDX-License-Identifier: Apache-2.0
"""The state of every page of a live VM, as the host's kernel has it, by RAM page index.

For private memory the kernel's page tables tell all. For shared memory (a memfd, a file) they tell
only what QEMU has mapped now: what else is there, and what of it was swapped, is asked of the file
(lseek SEEK_DATA, mincore). Nothing is read, mapped or brought in.
"""

from __future__ import annotations

import errno
import mmap
import os
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES, PAGE_SHIFT, HostVirtualAddress

from .errors import AccessDenied
from .kernel_pages import (
    KSM,
    PAGEMAP_EXCLUSIVE,
    PAGEMAP_FRAME,
    PAGEMAP_PRESENT,
    PAGEMAP_SWAPPED,
    SCAN_HUGE,
    SCAN_ZERO,
    ZERO_PAGE,
    KernelPages,
    Pagemap,
    Words,
)
from .process import Process
from .ram import Backing, RamBlock, RamLayout
from .system_calls import pagemap_scan, pages_in_memory


class LivePageState(IntEnum):
    """What lies behind a page of the guest."""

    UNTOUCHED = 0  # nothing: never touched, or given back by the balloon or free-page reporting
    PRIVATE = 1  # a frame of its own
    SHARED = 2  # a frame merged by KSM
    ZERO = 3  # the host's one page of zeroes
    SWAPPED = 4  # in the host's swap, zram and zswap included
    UNKNOWN = 5  # there, but what is there cannot be told


RESIDENT_STATES = (LivePageState.PRIVATE, LivePageState.SHARED)


@dataclass(frozen=True, slots=True)
class PageStateCounts:
    """Numbers of 4 KiB pages; None is unknown."""

    untouched: int | None
    private: int | None
    shared: int | None
    zero: int | None
    swapped: int | None
    huge: int | None  # of the private ones, in large pages of the host
    granted: int | None  # pages with a frame: private and shared ones
    consumed: float | None  # frames charged: a frame mapped by n pages counts 1/n
    shared_saved: float | None  # shared pages less their frames, charged likewise


@dataclass(frozen=True)
class PageStates:
    """States of all RAM pages of a VM at one moment."""

    state: np.ndarray[Any, np.dtype[np.uint8]]  # LivePageState
    mpn: Words  # frame; 0 where there is none or this user may not know
    huge: np.ndarray[Any, np.dtype[np.bool_]] | None  # None: this kernel cannot tell
    shared_by: Words  # of the SHARED pages, in order: how often their frame is mapped
    frames_known: bool

    def where(self, *states: LivePageState) -> np.ndarray[Any, np.dtype[np.int64]]:
        """RAM page indices of the pages in one of ``states``."""
        return np.flatnonzero(np.isin(self.state, states))

    def counts(self) -> PageStateCounts:
        """How many pages are in which state."""
        number = np.bincount(self.state, minlength=len(LivePageState))
        of = {state: int(number[state]) for state in LivePageState}
        if of[LivePageState.UNKNOWN]:
            # Some page may be private or merged: only what cannot be among them is known.
            return PageStateCounts(
                of[LivePageState.UNTOUCHED], None, None, None, of[LivePageState.SWAPPED],
                None, None, None, None,
            )  # fmt: skip
        charged = float(np.sum(1.0 / np.maximum(self.shared_by, 1)))
        private, shared = of[LivePageState.PRIVATE], of[LivePageState.SHARED]
        return PageStateCounts(
            untouched=of[LivePageState.UNTOUCHED],
            private=private,
            shared=shared,
            zero=of[LivePageState.ZERO],
            swapped=of[LivePageState.SWAPPED],
            huge=None if self.huge is None else int(np.count_nonzero(self.huge)),
            granted=private + shared,
            consumed=private + charged,
            shared_saved=shared - charged,
        )


def read_page_states(
    process: Process, layout: RamLayout, pagemap: Pagemap, kernel: KernelPages | None
) -> PageStates:
    """The states now. ``kernel`` None: this user may not see frames, their flags and counts.

    Raises ProcessGone, AccessDenied.
    """
    entries = pagemap.of_ram(layout)
    state = np.full(layout.pages, LivePageState.UNTOUCHED, np.uint8)
    present = (entries & PAGEMAP_PRESENT) != 0
    swapped = ~present & ((entries & PAGEMAP_SWAPPED) != 0)
    state[present] = LivePageState.PRIVATE
    state[swapped] = LivePageState.SWAPPED
    mpn = np.where(present, entries & PAGEMAP_FRAME, np.uint64(0))
    anonymous = np.zeros(layout.pages, np.bool_)
    for block in layout.blocks:
        inside = slice(block.first_index, block.first_index + block.pages)
        if block.shared:
            _add_unmapped(process, block, state[inside], present[inside])
        elif block.backing is Backing.ANONYMOUS:
            anonymous[inside] = True
    huge, zero = _scan(pagemap, layout)
    # Merged pages, and those of the zero page, are mapped more than once, or at least not
    # exclusively; all the others need no look at the frame.
    doubtful = np.flatnonzero(anonymous & present & ((entries & PAGEMAP_EXCLUSIVE) == 0))
    known = kernel is not None and bool(mpn[present].any() or not present.any())
    if known and kernel is not None:
        flags = kernel.flags(mpn[doubtful])
        state[doubtful[(flags & ZERO_PAGE) != 0]] = LivePageState.ZERO
        merged = doubtful[((flags & KSM) != 0) & ((flags & ZERO_PAGE) == 0)]
        state[merged] = LivePageState.SHARED
        # A frame merged from pages of which one is left is mapped once, hence exclusive; it
        # saves nothing and counts as private.
        shared_by = kernel.counts(mpn[merged])
    else:
        state[doubtful] = LivePageState.UNKNOWN
        shared_by = np.zeros(0, np.uint64)
        if zero is not None:
            state[zero & present] = LivePageState.ZERO
    if huge is not None:
        huge &= state == LivePageState.PRIVATE
    return PageStates(state, mpn, huge, shared_by, known)


def state_of_page(
    process: Process, layout: RamLayout, pagemap: Pagemap, kernel: KernelPages | None, index: int
) -> LivePageState:
    """The state of one page by RAM page index: what ``read_page_states`` says of all of them."""
    block = next(item for item in layout.blocks if index < item.first_index + item.pages)
    offset = (index - block.first_index) << PAGE_SHIFT
    page = replace(
        block,
        host_address=HostVirtualAddress(block.host_address + offset),
        bytes=PAGE_BYTES,
        first_index=0,
        file_offset=block.file_offset + offset,
    )
    alone = RamLayout((page,), ())
    return LivePageState(int(read_page_states(process, alone, pagemap, kernel).state[0]))


def _scan(pagemap: Pagemap, layout: RamLayout) -> tuple[Any, Any]:
    """Pages in large pages, and pages of the zero page, by PAGEMAP_SCAN; None, None without it."""
    huge, zero = np.zeros(layout.pages, np.bool_), np.zeros(layout.pages, np.bool_)
    for block in layout.blocks:
        first, end = block.host_address, block.host_address + block.bytes
        try:
            runs = pagemap_scan(pagemap.descriptor, first, end, any_of=SCAN_HUGE | SCAN_ZERO)
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL):
                return None, None
            raise
        for start, stop, categories in runs:
            a = block.first_index + ((start - first) >> PAGE_SHIFT)
            b = block.first_index + ((stop - first) >> PAGE_SHIFT)
            if categories & SCAN_HUGE:
                huge[a:b] = True
            if categories & SCAN_ZERO:
                zero[a:b] = True
    return huge, zero


def _add_unmapped(process: Process, block: RamBlock, state: Any, present: Any) -> None:
    """Pages of a shared block that the file has although QEMU does not map them now."""
    if present.all():
        return
    try:
        descriptor = open_backing(process, block)
    except AccessDenied:
        state[~present] = LivePageState.UNKNOWN
        return
    try:
        has_data = _data_pages(descriptor, block)
        candidates = has_data & ~present
        if not candidates.any():
            return
        with mmap.mmap(
            descriptor, block.bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=block.file_offset
        ) as mapping:
            view = np.frombuffer(mapping, np.uint8)
            try:
                cached = pages_in_memory(view)
            finally:
                del view
        state[candidates & cached] = LivePageState.PRIVATE
        swappable = block.backing in (Backing.MEMFD, Backing.SHARED_MEMORY)
        gone = LivePageState.SWAPPED if swappable else LivePageState.UNTOUCHED
        state[candidates & ~cached] = gone
    finally:
        os.close(descriptor)


def has_pager(process: Process, block: RamBlock) -> bool:
    """True if a userfaultfd answers for the block's missing pages: a page without a frame may then
    be one that its pager keeps (proc(5), smaps, VmFlags "um"). Raises ProcessGone, AccessDenied."""
    inside = False
    for line in process.read("smaps").splitlines():
        head = line.split(None, 1)[0]
        if b"-" in head and not head.endswith(b":"):
            start, end = (int(word, 16) for word in head.split(b"-"))
            inside = start <= block.host_address < end
        elif inside and head == b"VmFlags:":
            return b"um" in line.split()
    return False


def open_backing(process: Process, block: RamBlock) -> int:
    """A read-only descriptor of the file that a shared block maps; the caller closes it.

    Raises AccessDenied (it needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE), ProcessGone.
    """
    for mapping in process.mappings():
        if mapping.start <= block.host_address < mapping.end:
            return process.open(f"map_files/{mapping.start:x}-{mapping.end:x}")
    process.require_alive()
    raise AccessDenied(f"process {process.pid}: RAM block {block.name} is not mapped any more")


def _data_pages(descriptor: int, block: RamBlock) -> np.ndarray[Any, np.dtype[np.bool_]]:
    found = np.zeros(block.pages, np.bool_)
    at, end = block.file_offset, block.file_offset + block.bytes
    while at < end:
        try:
            first = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        if first >= end:
            break
        at = min(os.lseek(descriptor, first, os.SEEK_HOLE), end)
        base = block.file_offset
        found[(first - base) >> PAGE_SHIFT : (at - base) >> PAGE_SHIFT] = True
    return found
