# SPDX-License-Identifier: Apache-2.0
"""The page-state machine of a paged VM: what happens to a page at each fault, discard and request.

The protocol is told at the head of ``page_states.py``. One object, in the fault handler's process,
makes all changes of states. Every method does a bounded piece of work and may be called in any
order; none blocks.

A call into the kernel that has to wait for an unread event (EventPending) is remembered as a
*wait*, and ``try_again`` repeats it after more events have been read. A wait for a discarded page
turns into one for zeros.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import numpy as np

from .blocks import NO_COPY, PageDamaged
from .page_states import PageIndex, PageState, PageTableFile, Word
from .paged_memory import PageBuffer, PagedMemory
from .userfaultfd import AlreadyPresent, EventPending

_RESIDENT, _EVICTING = int(PageState.RESIDENT), int(PageState.EVICTING)
_STORED, _RESTORING = int(PageState.STORED), int(PageState.RESTORING)


class CopyReader(Protocol):
    """Where copies are read from: ``blocks.BlockReader``, or a test's dictionary."""

    def read_into(self, entry: int, page: memoryview) -> None: ...


class Wait(Enum):
    """What a fault that could not be answered yet still needs."""

    COPY = "copy"
    ZERO = "zero"
    WRITE = "write"


class PageStateMachine:
    """All changes of page states of one VM.

    ``clock`` seconds are set by the owner now and then; they only mark when pages came back.
    """

    def __init__(self, table: PageTableFile, memory: PagedMemory, copies: CopyReader) -> None:
        self._table = table
        self._memory = memory
        self._copies = copies
        self._states = table.states_view
        self._index = table.index_view
        self._words = table.words
        self._buffer = PageBuffer().view
        self._waits: dict[PageIndex, Wait] = {}
        self.damaged: dict[PageIndex, str] = {}
        self.clock = 0

    @property
    def waiting(self) -> bool:
        """True if a call has to be tried again after the next event."""
        return bool(self._waits)

    # What the VM does --------------------------------------------------------------------------

    def missing(self, page: PageIndex) -> None:
        """A thread of the VM waits for a page that is not there."""
        state = self._states[page]
        if state == _STORED:
            self._states[page] = _RESTORING
            self._restore(page)
        elif state == _RESTORING:
            self._words[Word.DUPLICATES] += 1
        else:
            # A hole of a resident page, or one that was discarded while it was being evicted: its
            # copy may have been read before the discard and must not come back.
            if state == _EVICTING:
                self._states[page] = _RESIDENT
            self._zero(page)

    def write_fault(self, page: PageIndex) -> None:
        """A thread of the VM waits to write to a page that is, or was, write-protected."""
        self._words[Word.WRITE_FAULTS] += 1
        if self._states[page] == _EVICTING:
            self._states[page] = _RESIDENT  # its copy is void; the evictor learns it at the commit
            self._words[Word.DIRTIED] += 1
        try:
            self._memory.allow_writes(page, 1)
        except EventPending:
            # It may wait for its content at the same time; that answer wakes the writer as well.
            self._waits.setdefault(page, Wait.WRITE)

    def discard(self, first: PageIndex, count: int) -> None:
        """The VM has discarded these pages: their copies are void."""
        words, states = self._words, self._table.states[first : first + count]
        words[Word.DISCARDS] += 1
        words[Word.DISCARDED] += int(np.count_nonzero(states >= _STORED))
        states[:] = _RESIDENT
        self._table.drop_entries(first, count)
        for page in self._waits.keys() & range(first, first + count):
            if self._waits[page] is Wait.COPY:
                self._waits[page] = Wait.ZERO
        for page in self.damaged.keys() & range(first, first + count):
            self._waits[page] = Wait.ZERO
            self._repaired(page)

    # What the evictor asks for -----------------------------------------------------------------

    def begin(self, first: PageIndex, count: int) -> list[tuple[PageIndex, int]]:
        """Turn RESIDENT pages to EVICTING; returns the runs that are. The caller protects them."""
        end, runs, at = first + count, [], first
        while at < end:
            begin = at
            while at < end and self._states[at] == _RESIDENT and at not in self._waits:
                at = PageIndex(at + 1)
            if at > begin:
                self._states[begin:at] = bytes([_EVICTING]) * (at - begin)
                runs.append((begin, at - begin))
            else:
                at = PageIndex(at + 1)
        return runs

    def commit(self, first: PageIndex, count: int) -> int:
        """Punch those pages that are still EVICTING, drop the copies of others; pages evicted."""
        end, at, evicted = first + count, first, 0
        while at < end:
            begin = at
            while at < end and self._states[at] == _EVICTING:
                at = PageIndex(at + 1)
            if at > begin:
                self._commit_run(begin, at - begin)
                evicted += at - begin
            else:
                if self._states[at] == _RESIDENT:
                    self._index[at] = NO_COPY
                at = PageIndex(at + 1)
        return evicted

    def _commit_run(self, first: PageIndex, count: int) -> None:
        self._memory.punch(first, count)
        words = self._words
        for page in range(first, first + count):
            if self._index[page] == NO_COPY:  # all zeros, as the hole is now
                self._states[page] = _RESIDENT
                words[Word.ZERO_PAGES] += 1
            else:
                self._states[page] = _STORED
        words[Word.EVICTED] += count

    def abort(self, first: PageIndex, count: int) -> None:
        """The evictor gives these pages up. Raises EventPending: to be repeated, changes nothing
        then that would not be done again."""
        states = self._table.states[first : first + count]
        evicting = states == _EVICTING
        aborted = int(np.count_nonzero(evicting))
        states[evicting] = _RESIDENT
        self._table.index[first : first + count][states == _RESIDENT] = NO_COPY
        self._words[Word.ABORTED] += aborted
        self._memory.allow_writes(first, count)

    def bring_back(self, page: PageIndex) -> None:
        """Restore a STORED page nobody waits for. Raises EventPending (the page is STORED still),
        PageDamaged or OSError."""
        if self._states[page] != _STORED:
            return
        self._copies.read_into(self._index[page], self._buffer)
        try:
            self._memory.fill(page, self._buffer)
        except AlreadyPresent:
            self._memory.wake(page, 1)
        self._index[page] = NO_COPY
        self._states[page] = _RESIDENT
        self._words[Word.RESTORED] += 1

    # Answers -----------------------------------------------------------------------------------

    def try_again(self) -> None:
        """Repeat what had to wait for an event. Call after reading events, and every second for
        the sake of copies that could not be read."""
        waits, self._waits = self._waits, {}
        for page, wait in waits.items():
            if wait is Wait.COPY:
                self._restore(page)
            elif wait is Wait.ZERO:
                self._zero(page)
            else:
                self.write_fault(page)

    def try_damaged_again(self) -> None:
        """Read the copies again that could not be read: an I/O error may have gone."""
        for page in list(self.damaged):
            self._restore(page)

    def _restore(self, page: PageIndex) -> None:
        """Answer the fault on a RESTORING page from its copy."""
        entry = self._index[page]
        try:
            self._copies.read_into(entry, self._buffer)
        except (PageDamaged, OSError) as error:
            self._not_readable(page, str(error))
            return
        try:
            self._memory.fill(page, self._buffer)
        except EventPending:
            self._words[Word.RETRIES] += 1
            self._waits[page] = Wait.COPY
            return
        except AlreadyPresent:
            self._memory.wake(page, 1)
        # Only now, and in this order: if we die here the page in memory is found to be the truth.
        self._index[page] = NO_COPY
        self._states[page] = _RESIDENT
        self._table.note_restored(page, self.clock)
        self._words[Word.RESTORED] += 1
        if page in self.damaged:
            self._repaired(page)

    def _zero(self, page: PageIndex) -> None:
        try:
            self._memory.zero(page)
        except EventPending:
            self._words[Word.RETRIES] += 1
            self._waits[page] = Wait.ZERO
            return
        except AlreadyPresent:
            self._memory.wake(page, 1)
        self._words[Word.ZEROED] += 1

    def _not_readable(self, page: PageIndex, why: str) -> None:
        """The thread goes on waiting: better a VM that stands still than one with wrong bytes."""
        if page not in self.damaged:
            self._table.message = f"page {page} of the VM cannot be brought back: {why}"
        self.damaged[page] = why
        self._words[Word.DAMAGED_PAGE] = page + 1
        self._words[Word.DAMAGED] = len(self.damaged)

    def _repaired(self, page: PageIndex) -> None:
        del self.damaged[page]
        self._words[Word.DAMAGED] = len(self.damaged)
        if not self.damaged:
            self._table.message = ""

    # Taking over -------------------------------------------------------------------------------

    def take_over(self) -> None:
        """Make the table true again after the death of the previous handler (or at the first
        start, when every page is RESIDENT and nothing is stored).

        Afterwards the caller must allow writes to all pages, wake all of them, and only then
        ``announce`` the new epoch.
        """
        present = self._memory.present()
        index, states = self._table.index, self._table.states
        index[present] = NO_COPY
        states[:] = np.where(index != NO_COPY, _STORED, _RESIDENT)
        self._words[Word.DAMAGED] = 0
        self._waits.clear()
        self.damaged.clear()

    def announce(self) -> None:
        """Tell the evictor that what it had begun is void."""
        self._words[Word.EPOCH] += 1
