# SPDX-License-Identifier: Apache-2.0
"""A VM's memory and its userfaultfd, with Linux's rules as far as the pager meets them."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from memvirt.live.pager.page_states import PageIndex
from memvirt.live.pager.userfaultfd import AlreadyPresent, EventPending

PAGES = 6
ZERO = bytes(8)


class Death(Exception):
    """The handler's process ends here."""


class ModelledKernel:
    """``PagedMemory`` of ``PAGES`` pages of eight bytes each, and the VM's threads that wait."""

    def __init__(self) -> None:
        self.content: list[bytes | None] = [None] * PAGES
        self.protected: set[int] = set()
        self.faults: deque[tuple[str, int]] = deque()
        self.removes: deque[tuple[int, int]] = deque()  # unread events
        self.waiting: list[tuple[int, bytes | None]] = []  # (page, content to write or None)
        self.results: list[tuple[int, bytes | None, bytes | None]] = []
        self.die_in: int | None = None
        self.die_after_effect = False

    # The VM's side

    def access(self, page: int, write: bytes | None) -> None:
        """A thread reads a page, or writes it; it waits in a fault if it must."""
        there = self.content[page]
        if there is None:
            self.faults.append(("missing", page))
            self.waiting.append((page, write))
        elif write is not None and page in self.protected:
            self.faults.append(("write", page))
            self.waiting.append((page, write))
        else:
            if write is not None:
                self.content[page] = write
            self.results.append((page, write, there))

    def discard(self, first: int, count: int) -> None:
        for page in range(first, first + count):
            self.content[page] = None
        self.removes.append((first, count))

    def _wake(self, pages: range) -> None:
        awake = [access for access in self.waiting if access[0] in pages]
        self.waiting = [access for access in self.waiting if access[0] not in pages]
        self.faults = deque(fault for fault in self.faults if fault[1] not in pages)
        for page, write in awake:
            self.access(page, write)

    # The pager's side: PagedMemory

    def _call(self, *, waits_for_events: bool = True) -> bool:
        """False: do nothing, for we die before; raises what the kernel, or death, brings."""
        if waits_for_events and self.removes:
            raise EventPending
        if self.die_in is not None:
            self.die_in -= 1
            if self.die_in < 0:
                if not self.die_after_effect:
                    raise Death
                return True
        return False

    def _fill(self, page: int, content: bytes) -> None:
        dies = self._call()
        if self.content[page] is not None:
            raise AlreadyPresent
        self.content[page] = content
        self.protected.discard(page)
        self._wake(range(page, page + 1))
        if dies:
            raise Death

    def fill(self, page: PageIndex, content: memoryview) -> None:
        self._fill(page, bytes(content[:8]))

    def zero(self, page: PageIndex) -> None:
        self._fill(page, ZERO)

    def wake(self, first: PageIndex, count: int) -> None:
        self._wake(range(first, first + count))

    def write_protect(self, first: PageIndex, count: int) -> None:
        if self.removes:
            raise EventPending
        self.protected |= set(range(first, first + count))

    def allow_writes(self, first: PageIndex, count: int) -> None:
        dies = self._call()
        self.protected -= set(range(first, first + count))
        self._wake(range(first, first + count))
        if dies:
            raise Death

    def punch(self, first: PageIndex, count: int) -> None:
        dies = self._call(waits_for_events=False)
        for page in range(first, first + count):
            self.content[page] = None
        if dies:
            raise Death

    def present(self) -> NDArray[np.bool_]:
        return np.array([content is not None for content in self.content])
