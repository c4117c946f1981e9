# SPDX-License-Identifier: Apache-2.0
"""The pmap: what lies behind each guest-physical page of one VM.

Structure of arrays over PPN, 6 bytes a page: state (1), MPN or slot of the backing store (4) and
flags (1). Exactly one state holds for a page at any time; how many pages are in each is counted as
they change. One byte for each aligned run of 512 pages says whether it is backed as one
*large page*.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from memvirt.address import MachinePageNumber, MpnArray, PhysicalPageNumber, PpnArray
from memvirt.mmu import page_state
from memvirt.mmu.page_state import FLAG_UNWRITTEN


class PageState(IntEnum):
    """Where the content of a guest-physical page is."""

    UNMAPPED = page_state.STATE_UNMAPPED  # reads as zeroes; no frame until the next access
    PRIVATE = page_state.STATE_PRIVATE  # in a frame of its own
    SHARED = page_state.STATE_SHARED  # in a frame of several pages, copy-on-write
    COMPRESSED = page_state.STATE_COMPRESSED  # in the VM's compression cache
    SWAPPED = page_state.STATE_SWAPPED  # in the VM's swap file
    STORED = page_state.STATE_SWAPPED + 1  # in another backing store; compiled code knows no more


# Named sets of states. Which of them a page is in says what its word in ``Pmap.frame`` is.
RESIDENT = (PageState.PRIVATE, PageState.SHARED)  # an MPN
KEPT = (PageState.COMPRESSED, PageState.SWAPPED, PageState.STORED)  # a slot of a backing store
_IS_RESIDENT = np.isin(np.arange(len(PageState)), RESIDENT)
_NOT_UNWRITTEN = np.uint8(0xFF ^ FLAG_UNWRITTEN)
LARGE_PAGES = 512  # pages of 4 KiB in a large page of 2 MiB


def is_resident(states: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of ``states`` (uint8, as in ``Pmap.state``) are RESIDENT."""
    return np.asarray(_IS_RESIDENT[states])


class Pmap:
    """The pmap of a VM with ``pages`` guest-physical pages.

    States change in ``set_state`` and ``set_states`` only, and, from UNMAPPED to PRIVATE, in
    ``frames.resolve_page``.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.state = np.zeros(pages, np.uint8)
        self.frame = np.zeros(pages, np.uint32)  # MPN if RESIDENT, slot if KEPT, else 0
        self.flags = np.zeros(pages, np.uint8)
        self.counts = np.zeros(len(PageState), np.int64)  # pages in each state
        self.counts[PageState.UNMAPPED] = pages
        self.shared_changes = 0  # times that pages became or ceased to be shared
        # 1: all pages of the run are private, in an aligned run of frames, in order.
        self.large = np.zeros(-(-pages // LARGE_PAGES), np.uint8)

    def state_of(self, ppn: PhysicalPageNumber) -> PageState:
        """State of ``ppn``. Raises IndexError beyond the VM's memory."""
        self.check(ppn)
        return PageState(int(self.state[ppn]))

    def mpn_of(self, ppn: PhysicalPageNumber) -> MachinePageNumber:
        """The frame of a resident page. Obligation: the caller knows that it is RESIDENT."""
        return MachinePageNumber(int(self.frame[ppn]))

    def mpns_of(self, ppns: PpnArray) -> MpnArray:
        """A copy of the MPNs of resident pages (uint32). Obligation: all are RESIDENT."""
        return MpnArray(self.frame[ppns])

    def check_all(self, ppns: PpnArray) -> None:
        """Raise IndexError if the VM has not all pages ``ppns``."""
        if ppns.size:
            self.check(PhysicalPageNumber(int(ppns.min())))
            self.check(PhysicalPageNumber(int(ppns.max())))

    def check(self, ppn: PhysicalPageNumber) -> None:
        """Raise IndexError if the VM has no page ``ppn``."""
        if not 0 <= ppn < self.pages:
            raise IndexError(f"PPN {ppn:#x} is beyond the VM's {self.pages} guest-physical pages")

    def set_state(self, ppn: PhysicalPageNumber, state: PageState) -> None:
        """Move one page to ``state``. What its word in ``frame`` is then is the caller's matter."""
        before = int(self.state[ppn])
        self.state[ppn] = state
        self.counts[before] -= 1
        self.counts[state] += 1
        self.shared_changes += PageState.SHARED in (before, state)
        if state != PageState.PRIVATE:
            self.flags[ppn] &= _NOT_UNWRITTEN

    def set_states(self, ppns: PpnArray | slice, state: PageState) -> None:
        """As ``set_state``, for distinct pages."""
        before = np.bincount(self.state[ppns], minlength=len(PageState))
        self.state[ppns] = state
        self.counts -= before
        self.counts[state] += int(before.sum())
        self.shared_changes += state == PageState.SHARED or bool(before[PageState.SHARED])
        if state != PageState.PRIVATE:
            self.flags[ppns] &= _NOT_UNWRITTEN

    def count(self, state: PageState) -> int:
        """Number of pages in ``state``."""
        return int(self.counts[state])

    def in_large_page(self, ppns: PpnArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of ``ppns`` are part of a large page."""
        return np.asarray(self.large[ppns // LARGE_PAGES] != 0)

    def resident(self) -> PpnArray:
        """PPNs that have a frame."""
        return PpnArray(np.flatnonzero(is_resident(self.state)))
