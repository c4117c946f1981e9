# SPDX-License-Identifier: Apache-2.0
"""Shared frames and hints of a sharing scan by the hash of their content, as compiled tables.

Open addressing with linear probing; entries are removed by shifting later ones back, so that no
table fills with tombstones (Knuth, TAOCP volume 3, section 6.4, algorithm R). Nothing here knows
what a page is: pages are *page numbers*, dense over all VMs of one table, frames are MPNs, and keys
are non-zero 64-bit hashes. That a key is found says nothing of equality: the caller compares.

A hint costs 8 bytes for its page's key and 4 bytes a slot, of which three eighths to three
quarters are in use: at most 19 bytes.
"""

from __future__ import annotations

import numpy as np

from memvirt.address import MpnArray
from memvirt.compiled import compiled

Keys = np.ndarray[tuple[int], np.dtype[np.uint64]]
Mpns = np.ndarray[tuple[int], np.dtype[np.int64]]
Slots = np.ndarray[tuple[int], np.dtype[np.uint32]]  # of hints: page number + 1, or 0
Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]
PageNumbers = np.ndarray[tuple[int], np.dtype[np.int64]]  # of a table, not of a VM

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: Fibonacci hashing (Knuth 6.4)
_HIGH = np.uint64(20)
_NO_KEY = np.uint64(0)
_LEAST = 64  # slots of an empty table
_MOST_PAGES = (1 << 32) - 2  # a slot is 32 bits, 0 is empty: 16 TiB of 4 KiB pages


@compiled
def _home(key: np.uint64, mask: int) -> np.int64:
    return np.int64((key * _GOLDEN) >> _HIGH) & mask


@compiled
def frame_slot(frame_keys: Keys, key: np.uint64) -> np.int64:
    """The slot of ``key``, or the empty one where it would go."""
    mask = frame_keys.size - 1
    at = _home(key, mask)
    while frame_keys[at] != _NO_KEY and frame_keys[at] != key:
        at = (at + 1) & mask
    return at


@compiled
def _put_frames(frame_keys: Keys, frame_mpns: Mpns, keys: Keys, mpns: Mpns) -> int:
    """Enter frames; returns how many keys were new."""
    new = 0
    for i in range(keys.size):
        at = frame_slot(frame_keys, keys[i])
        if frame_keys[at] == _NO_KEY:
            frame_keys[at] = keys[i]
            new += 1
        frame_mpns[at] = mpns[i]
    return new


@compiled
def _drop_frames(frame_keys: Keys, frame_mpns: Mpns, keys: Keys) -> int:
    """Remove entries; returns how many there were."""
    mask = frame_keys.size - 1
    dropped = 0
    for i in range(keys.size):
        hole = frame_slot(frame_keys, keys[i])
        if frame_keys[hole] == _NO_KEY:
            continue
        dropped += 1
        at = (hole + 1) & mask
        while frame_keys[at] != _NO_KEY:
            home = _home(frame_keys[at], mask)
            if ((at - home) & mask) >= ((at - hole) & mask):
                frame_keys[hole] = frame_keys[at]
                frame_mpns[hole] = frame_mpns[at]
                hole = at
            at = (at + 1) & mask
        frame_keys[hole] = _NO_KEY
    return dropped


@compiled
def _hint_slot(slots: Slots, page_keys: Keys, key: np.uint64) -> np.int64:
    mask = slots.size - 1
    at = _home(key, mask)
    while slots[at] != 0 and page_keys[np.int64(slots[at]) - 1] != key:
        at = (at + 1) & mask
    return at


@compiled
def _drop_hint(slots: Slots, page_keys: Keys, page: int) -> int:
    """Let ``page`` be no hint; returns 1 if it was one."""
    if page_keys[page] == _NO_KEY:
        return 0
    mask = slots.size - 1
    hole = _hint_slot(slots, page_keys, page_keys[page])
    page_keys[page] = _NO_KEY
    at = (hole + 1) & mask
    while slots[at] != 0:
        home = _home(page_keys[np.int64(slots[at]) - 1], mask)
        if ((at - home) & mask) >= ((at - hole) & mask):
            slots[hole] = slots[at]
            hole = at
        at = (at + 1) & mask
    slots[hole] = 0
    return 1


@compiled
def _drop_hints(slots: Slots, page_keys: Keys, pages: PageNumbers, dropped: Flags) -> None:
    for i in range(pages.size):
        dropped[i] = _drop_hint(slots, page_keys, pages[i]) == 1


@compiled
def _fill_slots(slots: Slots, page_keys: Keys) -> None:
    """Enter every page with a key into the empty ``slots``."""
    for page in range(page_keys.size):
        if page_keys[page] != _NO_KEY:
            at = _hint_slot(slots, page_keys, page_keys[page])
            slots[at] = np.uint32(page + 1)


@compiled
def _match(
    frame_keys: Keys,
    frame_mpns: Mpns,
    slots: Slots,
    page_keys: Keys,
    pages: PageNumbers,
    keys: Keys,
    mpns: Mpns,
    hints: PageNumbers,
) -> int:
    """See ``ShareTable.match``; returns by how many the hints of these pages became more."""
    more = 0
    for i in range(pages.size):
        page, key = pages[i], keys[i]
        mpns[i], hints[i] = -1, -1
        if page_keys[page] != key:
            more -= _drop_hint(slots, page_keys, page)
        at = frame_slot(frame_keys, key)
        if frame_keys[at] == key:
            more -= _drop_hint(slots, page_keys, page)
            mpns[i] = frame_mpns[at]
            continue
        at = _hint_slot(slots, page_keys, key)
        if slots[at] == 0:
            slots[at] = np.uint32(page + 1)
            page_keys[page] = key
            more += 1
        elif np.int64(slots[at]) - 1 != page:
            hints[i] = np.int64(slots[at]) - 1
    return more


def _slots_for(entries: int) -> int:
    """The power of two of which ``entries`` take three quarters at most."""
    size = _LEAST
    while 4 * entries > 3 * size:
        size *= 2
    return size


class ShareTable:
    """Shared frames and hints by key. At most one frame or one hint has a key."""

    def __init__(self) -> None:
        self.frames = 0
        self.hints = 0
        self._frame_keys = np.zeros(_LEAST, np.uint64)
        self._frame_mpns = np.zeros(_LEAST, np.int64)
        self._slots = np.zeros(_LEAST, np.uint32)  # page number + 1 of a hint; 0 is empty
        self._page_keys = np.zeros(0, np.uint64)  # by page number: its key as a hint, else 0

    @property
    def pages(self) -> int:
        """Page numbers in use: 0 to this."""
        return int(self._page_keys.size)

    @property
    def hint_bytes(self) -> int:
        """Memory of the hints, and of the pages that could be some."""
        return self._slots.nbytes + self._page_keys.nbytes

    # Pages -------------------------------------------------------------------------------------

    def add_pages(self, count: int) -> int:
        """Number ``count`` more pages; returns the first number. ValueError beyond 2**32 - 2."""
        first = self.pages
        if first + count > _MOST_PAGES:
            raise ValueError(f"{first + count} pages of one salt: at most {_MOST_PAGES} are")
        self._page_keys = np.concatenate((self._page_keys, np.zeros(count, np.uint64)))
        return first

    def remove_pages(self, first: int, count: int) -> None:
        """Forget pages and their hints. Obligation: numbers behind them are ``count`` less now."""
        rest = self._page_keys[:first], self._page_keys[first + count :]
        self._page_keys = np.concatenate(rest)
        self.hints = int(np.count_nonzero(self._page_keys))
        self._new_slots(_slots_for(self.hints))

    def _new_slots(self, size: int) -> None:
        self._slots = np.zeros(size, np.uint32)
        _fill_slots(self._slots, self._page_keys)

    # Hints -------------------------------------------------------------------------------------

    def match(self, pages: PageNumbers, keys: Keys) -> tuple[MpnArray, PageNumbers, int]:
        """Look pages (distinct) up in order, by their present keys.

        Returns for each the MPN of the frame of its key, or -1; for each without one the page that
        is the hint of its key, or -1; and by how many the hints among ``pages`` became more. A page
        with neither is the hint of its key now. A hint a page was for another key is forgotten.
        """
        if 4 * (self.hints + pages.size) > 3 * self._slots.size:
            self._new_slots(_slots_for(self.hints + int(pages.size)))
        mpns, hints = np.empty(pages.size, np.int64), np.empty(pages.size, np.int64)
        tables = self._frame_keys, self._frame_mpns, self._slots, self._page_keys
        more = int(_match(*tables, pages, keys, mpns, hints))
        self.hints += more
        return MpnArray(mpns), hints, more

    def hint_keys(self, pages: PageNumbers) -> Keys:
        """The key each of ``pages`` is the hint of; 0 if it is none."""
        return np.asarray(self._page_keys[pages])

    def drop_hints(self, pages: PageNumbers) -> int:
        """Let ``pages`` be no hints; returns how many were."""
        dropped = np.empty(pages.size, np.bool_)
        _drop_hints(self._slots, self._page_keys, pages, dropped)
        count = int(np.count_nonzero(dropped))
        self.hints -= count
        return count

    # Frames ------------------------------------------------------------------------------------

    def frame(self, key: int) -> int:
        """The MPN of the frame with ``key``, or -1."""
        at = frame_slot(self._frame_keys, np.uint64(key))
        return int(self._frame_mpns[at]) if self._frame_keys[at] != _NO_KEY else -1

    @property
    def frame_arrays(self) -> tuple[Keys, Mpns]:
        """What ``frame_slot`` looks keys up in, and the MPN by slot; until the table changes."""
        return self._frame_keys, self._frame_mpns

    def all_frames(self) -> tuple[Keys, MpnArray]:
        """Keys and MPNs of all frames."""
        used = self._frame_keys != _NO_KEY
        return self._frame_keys[used], MpnArray(self._frame_mpns[used])

    def set_frames(self, keys: Keys, mpns: MpnArray) -> None:
        """Enter frames. Obligation: no page is the hint of any of these keys."""
        if 4 * (self.frames + keys.size) > 3 * self._frame_keys.size:
            self._rebuild(*self.all_frames(), room=int(keys.size))
        self.frames += int(
            _put_frames(self._frame_keys, self._frame_mpns, keys, np.asarray(mpns, np.int64))
        )

    def drop_frames(self, keys: Keys) -> int:
        """Forget the frames of these keys; returns how many there were."""
        dropped = int(_drop_frames(self._frame_keys, self._frame_mpns, keys))
        self.frames -= dropped
        return dropped

    def keep_frames(self, keys: Keys, mpns: MpnArray) -> None:
        """Forget all frames but these."""
        self._rebuild(keys, mpns, room=0)

    def _rebuild(self, keys: Keys, mpns: MpnArray, *, room: int) -> None:
        size = _slots_for(int(keys.size) + room)
        self._frame_keys = np.zeros(size, np.uint64)
        self._frame_mpns = np.zeros(size, np.int64)
        self.frames = int(
            _put_frames(self._frame_keys, self._frame_mpns, keys, np.asarray(mpns, np.int64))
        )
