# SPDX-License-Identifier: Apache-2.0
"""Transparent page sharing: frames of equal content become one, copy-on-write.

OSDI 2002 section 4: pages are scanned in random order and hashed; a match by hash is always
compared in full before anything is shared. A page without a match becomes a *hint*: hash, VM and
PPN, not write-protected. When a later page has the same hash, the hint's page is hashed again and,
if it still has it, becomes the shared frame. Each *salt* has tables of its own, so that VMs of
different owners never share, not even pages of zeroes: whether a write is slow tells nothing of
another owner's memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from memvirt.address import MachinePageNumber, MpnArray, PhysicalPageNumber, PpnArray

from .protocols import Flags, FrameSharing, GuestMemory, Hashes

_BATCH = 1024  # pages hashed at a time


def _shares(guest: GuestMemory) -> FrameSharing:
    """Sharing of a VM that is known to have it: only such VMs are ever in a table."""
    assert guest.sharing is not None
    return guest.sharing


def _in_large_page(guest: GuestMemory, ppns: PpnArray) -> Flags:
    if guest.large_pages is None:
        return np.zeros(ppns.size, np.bool_)
    return guest.large_pages.in_large_page(ppns)


@dataclass
class _Table:
    """Shared frames and hints of one salt, by hash."""

    frames: dict[int, MachinePageNumber] = field(default_factory=dict)  # perhaps out of date
    hints: dict[int, tuple[GuestMemory, PhysicalPageNumber]] = field(default_factory=dict)
    purge_at: int = 1024

    def purge(self, guest: GuestMemory) -> None:
        """Drop entries of frames that are gone. ``guest`` is any VM of this salt."""
        mpns = MpnArray(np.fromiter(self.frames.values(), np.int64, len(self.frames)))
        usable = _shares(guest).may_share(mpns)
        pairs = zip(self.frames.items(), usable.tolist(), strict=True)
        self.frames = {key: mpn for (key, mpn), good in pairs if good}
        self.purge_at = max(1024, 2 * len(self.frames))


@dataclass
class _Scan:
    """The scan of one VM, in a scattered order that costs no memory: each page once in a pass.

    Page i of the order is (stride * i + start) mod pages, the stride having no common divisor
    with the number of pages.
    """

    pages: int
    hint_key: Hashes  # hash under which a page is a hint, by PPN
    stride: int = 1
    start: int = 0
    position: int = 0
    passes: int = 0
    due: float = 0.0  # pages to scan, a fraction carried over
    hints: int = 0

    def shuffle(self, random: np.random.Generator) -> None:
        """Draw the order of the next pass."""
        self.position = 0
        self.start = int(random.integers(self.pages))
        self.stride = int(random.integers(1, self.pages + 1))
        while math.gcd(self.stride, self.pages) != 1:
            self.stride = self.stride % self.pages + 1

    def next(self, count: int) -> PpnArray:
        """The next ``count`` pages of the order."""
        numbers = np.arange(self.position, self.position + count)
        self.position += count
        return PpnArray((numbers * self.stride + self.start) % self.pages)


class PageSharing:
    """Sharing for all VMs of a host. ``random`` decides the order of the scans."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._tables: dict[int, _Table] = {}
        self._scans: dict[int, _Scan] = {}
        self.break_large = True  # may pages of large pages be shared, which breaks them?
        self.scanned = 0
        self.collisions = 0  # equal hashes of different pages, and entries out of date

    def add(self, guest: GuestMemory) -> None:
        """Scan a VM from now on. One that shares no frames is passed by."""
        if guest.sharing is None:
            return
        scan = _Scan(guest.pages, np.zeros(guest.pages, np.uint64))
        scan.shuffle(self._random)
        self._scans[guest.vm_id] = scan
        self._tables.setdefault(guest.sharing.share_salt, _Table())

    def remove(self, guest: GuestMemory) -> None:
        """Forget a VM that is powered off. Its shared frames live on with other VMs."""
        if guest.sharing is None:
            return
        table = self._tables[guest.sharing.share_salt]
        for key in [key for key, hint in table.hints.items() if hint[0] is guest]:
            del table.hints[key]
        del self._scans[guest.vm_id]

    def _set_hint(
        self, table: _Table, guest: GuestMemory, ppn: PhysicalPageNumber, key: int
    ) -> None:
        """Make ``ppn`` the hint for ``key``, and for no other hash it had before."""
        scan = self._scans[guest.vm_id]
        before = int(scan.hint_key[ppn])
        if before != key and table.hints.get(before) == (guest, ppn):
            self._drop_hint(table, before)
        self._drop_hint(table, key)
        table.hints[key] = (guest, ppn)
        scan.hint_key[ppn] = key
        scan.hints += 1

    def _drop_hint(self, table: _Table, key: int) -> None:
        hint = table.hints.pop(key, None)
        if hint is not None:
            self._scans[hint[0].vm_id].hints -= 1

    def passes(self, guest: GuestMemory) -> int:
        """Complete scans of the VM so far."""
        scan = self._scans.get(guest.vm_id)
        return 0 if scan is None else scan.passes

    def hints(self, guest: GuestMemory) -> int:
        """Hints that name pages of this VM."""
        scan = self._scans.get(guest.vm_id)
        return 0 if scan is None else scan.hints

    def zero_frames(self, guest: GuestMemory) -> list[MachinePageNumber]:
        """The MPN of the shared frame of zeroes that ``guest`` may use, if there is one."""
        if guest.sharing is None:
            return []
        mpn = self._tables[guest.sharing.share_salt].frames.get(guest.sharing.zero_hash)
        return (
            [mpn]
            if mpn is not None and guest.sharing.may_share(MpnArray(np.array([mpn])))[0]
            else []
        )

    def zero_pages(self, guest: GuestMemory) -> int:
        """Pages of ``guest`` that are mapped to a shared frame of zeroes."""
        frames = self.zero_frames(guest)
        return 0 if guest.sharing is None or not frames else guest.sharing.mapped_to(frames)

    def scan(self, guest: GuestMemory, pages: float) -> int:
        """Scan the next ``pages`` pages of a VM (fractions add up); returns how many it shared."""
        if guest.sharing is None:
            return 0
        scan = self._scans[guest.vm_id]
        scan.due += pages
        count = min(int(scan.due), guest.pages)
        scan.due -= int(scan.due)
        shared = 0
        while count > 0:
            size = min(count, _BATCH, guest.pages - scan.position)
            shared += self.scan_pages(guest, scan.next(size))
            count -= size
            if scan.position == guest.pages:
                scan.passes += 1
                scan.shuffle(self._random)
        return shared

    def scan_pages(self, guest: GuestMemory, ppns: PpnArray) -> int:
        """Share what can be shared of the private pages among ``ppns``; returns how many were."""
        shared, left = self._scan_once(guest, ppns)
        if left.size:  # entries that were out of date are gone now
            again, left = self._scan_once(guest, left)
            shared += again
        return shared

    def _scan_once(self, guest: GuestMemory, ppns: PpnArray) -> tuple[int, PpnArray]:
        """Pages shared, and those whose entry in the table turned out to be of other content."""
        sharing = _shares(guest)
        private = sharing.private(ppns)
        if not self.break_large:
            private = private[~_in_large_page(guest, private)]
        if private.size == 0:
            return 0, private
        table = self._tables[sharing.share_salt]
        self.scanned += int(private.size)
        pages: list[PhysicalPageNumber] = []
        frames: list[MachinePageNumber] = []
        keys: list[int] = []
        made = 0
        hashes = sharing.hash_pages(private).tolist()
        for ppn, key in zip(private.tolist(), hashes, strict=True):
            mpn = table.frames.get(key)
            if mpn is None:
                mpn = self._from_hint(table, guest, ppn, key)
                if mpn is None:
                    continue
                made += 1
            pages.append(ppn)
            frames.append(mpn)
            keys.append(key)
        wanted = PpnArray(np.array(pages, np.int64))
        mpns = MpnArray(np.array(frames, np.int64))
        usable = sharing.may_share(mpns)  # a frame may be gone, or hold something else by now
        done = sharing.share(wanted[usable], mpns[usable])
        left = private[:0]
        if done.size < len(pages):
            left = self._collided(table, guest, dict(zip(pages, keys, strict=True)), done)
        if len(table.frames) > table.purge_at:
            table.purge(guest)
        return made + int(done.size), left

    def _from_hint(
        self, table: _Table, guest: GuestMemory, ppn: PhysicalPageNumber, key: int
    ) -> MachinePageNumber | None:
        """The shared frame made from a hint with this hash; else ``ppn`` becomes the hint."""
        hint = table.hints.get(key)
        if hint == (guest, ppn):
            return None
        if hint is not None:
            other, candidate = hint
            sharing = _shares(other)
            page = sharing.private(PpnArray(np.array([candidate], np.int64)))
            whole = not self.break_large and _in_large_page(other, page).any()
            if page.size and not whole and int(sharing.hash_pages(page)[0]) == key:
                mpn = sharing.make_shared(candidate)
                if table.frames.get(sharing.zero_hash) == mpn:
                    # It was of zeroes once: its pages are counted by this entry.
                    del table.frames[sharing.zero_hash]
                table.frames[key] = mpn
                self._drop_hint(table, key)
                return mpn
        self._set_hint(table, guest, ppn, key)
        return None

    def _collided(
        self, table: _Table, guest: GuestMemory, keys: dict[PhysicalPageNumber, int], done: PpnArray
    ) -> PpnArray:
        """Some pages differ from the frame of the same hash: its entry is stale, or a collision.

        The entry goes; returns the pages, which are looked at once more.
        """
        wanted = np.fromiter(keys, np.int64, len(keys))
        rest = _shares(guest).private(PpnArray(np.setdiff1d(wanted, done)))
        for ppn in rest.tolist():
            if table.frames.pop(keys[ppn], None) is not None:
                self.collisions += 1
        return rest
