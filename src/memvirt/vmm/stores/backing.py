# SPDX-License-Identifier: Apache-2.0
"""A backing store: where pages without a frame are kept until the guest wants them back.

A VM has one or several by name (``vmm.content``); the VMkernel says in which order they are tried.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from memvirt.address import PhysicalPageNumber, PpnArray
from memvirt.machine.content import Pages

Slots = np.ndarray[tuple[int], np.dtype[np.int64]]
REFUSED = -1  # the page cannot be kept here
FULL = -2  # it could, had older pages left


class BackingStoreError(Exception):
    """A page cannot be had back now: nothing is lost, the same request may succeed later."""


class PageCorrupted(Exception):
    """A page came back from where it was kept other than it went in. It is lost."""


class BackingStore(Protocol):
    """A store of 4 KiB pages by slot. ``take`` gives back exactly what ``put`` was given.

    ``wait_ns`` is the virtual time a guest waits for ``take``. ``read`` and ``take`` raise
    BackingStoreError, with the page kept, or PageCorrupted. A slot is below 2**32: the pmap keeps
    it in place of the MPN.
    """

    wait_ns: int

    @property
    def frames(self) -> int:
        """Frames of machine memory it takes: of kind COMPRESSED, owned by and charged to the VM."""
        ...

    def put(self, ppns: PpnArray, contents: Pages) -> Slots:
        """Keep pages (a row of 4096 bytes for each PPN): a slot each, REFUSED, or FULL."""
        ...

    def oldest(self, count: int) -> list[tuple[PhysicalPageNumber, int]]:
        """(PPN, slot) of pages that make room for ``count`` others if they leave, oldest first.

        A store that never answers FULL returns none.
        """
        ...

    def read(self, slot: int) -> bytes:
        """The page in ``slot``; changes nothing."""
        ...

    def take(self, slot: int) -> bytes:
        """The page in ``slot``, which is free afterwards. An error leaves the slot as it was."""
        ...

    def discard(self, slots: Iterable[int]) -> None:
        """Forget the pages in ``slots``."""
        ...

    def slots_in_use(self) -> Slots:
        """Slots that hold a page, in any order: for the checker."""
        ...

    def settle(self) -> None:
        """Give back frames that have become empty. Called with every processor stopped."""
        ...
