# SPDX-License-Identifier: Apache-2.0
"""Where each page of a paged VM is: the table that the pager's processes share, and its protocol.

======== ==================================================================================
state    meaning
======== ==================================================================================
RESIDENT the VM's memory is the truth: a page there, or a hole that reads as zeros
EVICTING still in memory, write-protected; its copy is being read, packed and stored
STORED   a hole in memory; the copy that the index names is the page
RESTORE  a hole; a fault has been read and its answer is not given yet (RESTORING)
======== ==================================================================================

**One writer.** Only the fault handler changes states: it is the process that reads faults and
discards, so all that happens to a page happens in one order, without locks. The evictor asks it
(``channel.py``) and waits for its answer. The table lies in a file mapped by all of them, so that a
handler that dies leaves everything to the next.

**An eviction.** (1) the handler turns RESIDENT pages to EVICTING. (2) The evictor write-protects
them, then *drains*: it stops and continues the VM, because a device that pinned a page before the
protection may write to it after (O_DIRECT disks lose data otherwise). (3) It reads the pages, puts
them into the store, and then sets their index entries. (4) The handler punches the pages that are
*still* EVICTING out of memory and makes them STORED, in small pieces between faults; entries of the
others it drops.

**A write fault** on an EVICTING page makes it RESIDENT and lets the write through; its copy is
void. **A missing fault** on a STORED page copies it back, *then* drops the entry. On an EVICTING
page it means that the VM discarded the page meanwhile: zeros, never the copy just read. **A
discard** by the VM (EVENT_REMOVE) drops the entry at once.

**Index entries** are words written whole. While a page is EVICTING its entry belongs to the
evictor until it has asked to commit or abort; at any other time it belongs to the handler.

**Death.** The order copy, entry, punch needs no fsync against the death of processes. A handler
that takes over looks at the memory: a page that is there is the truth and its entry is dropped; a
hole with an entry is STORED; a hole without is zeros. It then advances the *epoch*, allows writes
everywhere and wakes all waiting threads. An evictor that finds a new epoch drops the entries it has
set for pages that are RESIDENT, and begins anew. An evictor that starts makes the handler forget
all EVICTING pages first.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import NewType

import numpy as np
from numpy.typing import NDArray

from memvirt.address import PAGE_BYTES

PageIndex = NewType("PageIndex", int)
"""A page of the paged memory, counted over its regions in their order (not always the PPN)."""


class PageState(IntEnum):
    """The state of one page; see the head of the module."""

    RESIDENT = 0
    EVICTING = 1
    STORED = 2
    RESTORING = 3


class Word(IntEnum):
    """The shared counters and flags, 64-bit words at the start of the table."""

    MAGIC = 0
    PAGES = 1
    EPOCH = 2  # how many handlers have taken over
    DAMAGED = 3  # pages whose copy cannot be read
    DAMAGED_PAGE = 4  # one of them, plus 1
    STOPPED_BY_US = 5  # a Stopped, written by the evictor only (by the supervisor after its end)
    LEAVE = 6  # the evictor asks to detach: a Leave
    # Counters, never reset.
    EVICTED = 8
    RESTORED = 9
    ZEROED = 10
    WRITE_FAULTS = 11
    DIRTIED = 12  # pages written while they were EVICTING
    DISCARDED = 13  # stored copies dropped because the VM discarded the page
    DISCARDS = 14  # EVENT_REMOVE messages
    DUPLICATES = 15
    RETRIES = 16  # calls that had to wait for an unread event
    ZERO_PAGES = 17  # evicted pages that were zero, kept nowhere
    SHARED = 18  # evicted pages whose content the store had already
    ABORTED = 19  # pages of evictions given up
    DRAINS = 20
    DRAIN_MICROSECONDS = 21
    STORE_FAILURES = 22
    STORE_BYTES = 23  # of this VM's salt, all VMs together
    COMMIT_MICROSECONDS = 24


class Stopped(IntFlag):
    """Why the VM stands still, as far as it is our doing; both can be true at once: a drain's
    ``stop`` hangs when a processor of the VM waits for a damaged page."""

    DRAIN = 1  # between QEMU's stop and cont
    DAMAGE = 2  # SIGSTOP: a page that it wants cannot be read back


class Leave(IntEnum):
    """Why the evictor asks for a detach."""

    NO = 0
    MIGRATION = 1


NOT_DETACHED = "not detached: "  # how messages begin that refuse a detach
_MAGIC = 0x6D656D7669727431
_WORDS = 64
_HISTOGRAM_WORDS = 448  # fault latencies, see latency.py
_HEADER_BYTES = PAGE_BYTES
_MESSAGE_BYTES = 512  # the last error, UTF-8, behind the header
_MAXIMUM_REFAULTS = 12

assert (_WORDS + _HISTOGRAM_WORDS) * 8 == _HEADER_BYTES


def _aligned(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES


class PageTableFile:
    """The shared table, mapped. ``create`` makes it, the constructor opens one that exists.

    ``states``, ``index``, ``restored_at`` (seconds of the monotonic clock) and ``refaults`` are
    arrays over pages; the ``*_view`` attributes are the same memory as memoryviews, which are
    faster for single elements.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        everything = memoryview(self._map)
        words = everything[:_HEADER_BYTES].cast("Q")
        self.words = words[:_WORDS]
        self.histogram = words[_WORDS:]
        if self.words[Word.MAGIC] != _MAGIC:
            raise ValueError(f"{path}: no table of a paged VM's pages")
        self.pages = pages = self.words[Word.PAGES]
        at = _HEADER_BYTES
        self._message = everything[at : at + _MESSAGE_BYTES]
        at = _aligned(at + _MESSAGE_BYTES)
        self.states_view = everything[at : at + pages]
        at += _aligned(pages)
        self.index_view = everything[at : at + 8 * pages].cast("Q")
        at += _aligned(8 * pages)
        self.restored_at_view = everything[at : at + 4 * pages].cast("I")
        at += _aligned(4 * pages)
        self.refaults_view = everything[at : at + pages]
        self.states: NDArray[np.uint8] = np.frombuffer(self.states_view, np.uint8)
        self.index: NDArray[np.uint64] = np.frombuffer(self.index_view, np.uint64)
        self.restored_at: NDArray[np.uint32] = np.frombuffer(self.restored_at_view, np.uint32)
        self.refaults: NDArray[np.uint8] = np.frombuffer(self.refaults_view, np.uint8)

    @classmethod
    def create(cls, path: Path, pages: int) -> PageTableFile:
        """A new table for ``pages`` pages, all RESIDENT. Raises OSError (ENOSPC included)."""
        size = _HEADER_BYTES + _aligned(_MESSAGE_BYTES)
        size += 2 * _aligned(pages) + _aligned(8 * pages) + _aligned(4 * pages)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Allocated in full: a store into the mapping must not meet a full disk.
            os.posix_fallocate(descriptor, 0, size)
            os.pwrite(descriptor, _MAGIC.to_bytes(8, "little") + pages.to_bytes(8, "little"), 0)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.close(descriptor)
        return cls(path)

    @property
    def message(self) -> str:
        """The last thing that went wrong, for people; empty if nothing does."""
        return bytes(self._message).partition(b"\0")[0].decode(errors="replace")

    @message.setter
    def message(self, text: str) -> None:
        encoded = text.encode()[: _MESSAGE_BYTES - 1]
        self._message[: len(encoded) + 1] = encoded + b"\0"

    def count(self, state: PageState) -> int:
        """How many pages are in ``state``."""
        return int(np.count_nonzero(self.states == state))

    def count_stored(self) -> int:
        """How many pages are out of memory."""
        return int(np.count_nonzero(self.states >= PageState.STORED))

    def note_restored(self, page: PageIndex, now: int) -> None:
        """A page came back because the VM wanted it: it will be a victim less soon."""
        self.restored_at_view[page] = now
        # Plus two here, minus one at each eviction: what comes back again and again stays.
        self.refaults_view[page] = min(self.refaults_view[page] + 2, _MAXIMUM_REFAULTS)

    def drop_entries(self, first: PageIndex, count: int) -> None:
        """Their copies are void."""
        if count == 1:
            self.index_view[first] = 0
        else:
            self.index[first : first + count] = 0
