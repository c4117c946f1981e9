# SPDX-License-Identifier: Apache-2.0
"""Transparent page sharing: frames of equal content become one, copy-on-write.

OSDI 2002 section 4: pages are scanned in random order and hashed. Here the order is of runs of 64
pages, which the processor's prefetching follows. A match by hash is always compared in full before
anything is shared. A page without a match becomes a *hint*: hash, VM and PPN, not write-protected.
When a later page has the same hash, the hint's page is hashed again and, if it still has it,
becomes the shared frame. A hint that was not written to since it was hashed is not hashed again,
neither when its turn comes in a scan nor when another page has its hash: the VM knows. Each *salt*
has tables of its own, so that VMs of different owners never
share, not even pages of zeroes: whether a write is slow tells nothing of another owner's memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from memvirt.address import MachinePageNumber, MpnArray, PpnArray
from memvirt.share_table import Keys, PageNumbers, ShareTable

from .protocols import Flags, FrameSharing, GuestMemory, Hashes

_BATCH = 4096  # pages scanned at a time
_FIRST_BATCH = 512  # of a scan; each is twice as large as the one before: see ``PageSharing.scan``
_RUN = 64  # pages scanned one after the other
_ROUNDS = 3  # a page meets a hint out of date, then one that is not, and a frame out of date
_LEAST_PURGE = 1024  # frames in a table before those that are gone are looked for


def _shares(guest: GuestMemory) -> FrameSharing:
    """Sharing of a VM that is known to have it: only such VMs are ever in a table."""
    assert guest.sharing is not None
    return guest.sharing


def _in_large_page(guest: GuestMemory, ppns: PpnArray) -> Flags:
    if guest.large_pages is None:
        return np.zeros(ppns.size, np.bool_)
    return guest.large_pages.in_large_page(ppns)


def _keys(hashes: Hashes) -> Keys:
    """Hashes as keys of a table, which are not 0."""
    return np.maximum(hashes, np.uint64(1))


@dataclass
class _Scan:
    """The scan of one VM, in a scattered order that costs no memory: each page once in a pass.

    Run i of the order begins at page 64 * ((stride * i) mod runs) + start, modulo the pages of
    the VM; the stride has no common divisor with the number of runs. Pages that fill no run are
    the last of a pass.
    """

    guest: GuestMemory
    first: int  # number of the VM's first page in its table
    stride: int = 1
    start: int = 0
    position: int = 0
    passes: int = 0
    due: float = 0.0  # pages to scan, a fraction carried over
    hints: int = 0

    def shuffle(self, random: np.random.Generator) -> None:
        """Draw the order of the next pass."""
        self.position = 0
        self.start = int(random.integers(self.guest.pages))
        runs = max(self.guest.pages // _RUN, 1)
        self.stride = int(random.integers(1, runs + 1))
        while math.gcd(self.stride, runs) != 1:
            self.stride = self.stride % runs + 1

    def next(self, count: int) -> PpnArray:
        """The next ``count`` pages of the order."""
        pages = self.guest.pages
        runs = pages // _RUN
        end = self.position + count
        run = np.arange(self.position // _RUN, -(-end // _RUN))
        scattered = np.where(run < runs, run * self.stride % max(runs, 1), run)
        ppns = ((scattered * _RUN + self.start)[:, np.newaxis] + np.arange(_RUN)).reshape(-1)
        ppns = ppns[self.position % _RUN :][:count]
        ppns[ppns >= pages] -= pages
        self.position = end
        return PpnArray(ppns)


@dataclass
class _Group:
    """The VMs of one salt, in the order of their pages' numbers in the table."""

    table: ShareTable = field(default_factory=ShareTable)
    scans: list[_Scan] = field(default_factory=list)
    purge_at: int = _LEAST_PURGE

    def owners(self, pages: PageNumbers) -> list[tuple[_Scan, Flags]]:
        """The VMs that have ``pages``, and which of them each has."""
        firsts = np.array([scan.first for scan in self.scans])
        owner = np.searchsorted(firsts, pages, side="right") - 1
        return [(self.scans[number], owner == number) for number in np.unique(owner).tolist()]

    def drop_hints(self, pages: PageNumbers) -> None:
        for scan, mine in self.owners(pages):
            scan.hints -= self.table.drop_hints(pages[mine])

    def purge(self, guest: GuestMemory) -> None:
        """Drop entries of frames that are gone. ``guest`` is any VM of this salt."""
        keys, mpns = self.table.all_frames()
        usable = _shares(guest).may_share(mpns)
        self.table.keep_frames(keys[usable], mpns[usable])
        self.purge_at = max(_LEAST_PURGE, 2 * self.table.frames)


class PageSharing:
    """Sharing for all VMs of a host. ``random`` decides the order of the scans."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._groups: dict[int, _Group] = {}
        self._scans: dict[int, _Scan] = {}
        self.break_large = True  # may pages of large pages be shared, which breaks them?
        self.scanned = 0  # private pages, the unchanged among them
        self.unchanged = 0  # hints not written to since they were hashed: not hashed again
        self.collisions = 0  # equal hashes of different pages, and entries out of date

    def add(self, guest: GuestMemory) -> None:
        """Scan a VM from now on. One that shares no frames is passed by."""
        if guest.sharing is None:
            return
        group = self._groups.setdefault(guest.sharing.share_salt, _Group())
        scan = _Scan(guest, group.table.add_pages(guest.pages))
        scan.shuffle(self._random)
        group.scans.append(scan)
        self._scans[guest.vm_id] = scan

    def remove(self, guest: GuestMemory) -> None:
        """Forget a VM that is powered off. Its shared frames live on with other VMs."""
        if guest.sharing is None:
            return
        group = self._groups[guest.sharing.share_salt]
        gone = self._scans.pop(guest.vm_id)
        group.table.remove_pages(gone.first, guest.pages)
        group.scans = [scan for scan in group.scans if scan is not gone]
        for scan in group.scans:
            if scan.first > gone.first:
                scan.first -= guest.pages

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
        group = self._groups[guest.sharing.share_salt]
        mpn = group.table.frame(max(guest.sharing.zero_hash, 1))
        if mpn < 0 or not guest.sharing.may_share(MpnArray(np.array([mpn])))[0]:
            return []
        return [MachinePageNumber(mpn)]

    def zero_pages(self, guest: GuestMemory) -> int:
        """Pages of ``guest`` that are mapped to a shared frame of zeroes."""
        frames = self.zero_frames(guest)
        return 0 if guest.sharing is None or not frames else guest.sharing.mapped_to(frames)

    def scan(self, guest: GuestMemory, pages: float) -> int:
        """Scan the next ``pages`` pages of a VM (fractions add up); returns how many it shared.

        Pages that equal another of their batch, and none before, are compared when all of the batch
        have been hashed and have left the cache. So the first batches are small.
        """
        if guest.sharing is None:
            return 0
        scan = self._scans[guest.vm_id]
        scan.due += pages
        count = min(int(scan.due), guest.pages)
        scan.due -= int(scan.due)
        shared = 0
        most = _FIRST_BATCH
        while count > 0:
            size = min(count, most, guest.pages - scan.position)
            shared += self.scan_pages(guest, scan.next(size))
            count -= size
            most = min(2 * most, _BATCH)
            if scan.position == guest.pages:
                scan.passes += 1
                scan.shuffle(self._random)
        return shared

    def scan_pages(self, guest: GuestMemory, ppns: PpnArray) -> int:
        """Share what can be shared of the private pages among ``ppns``; returns how many were.

        ``ppns`` are distinct.
        """
        sharing = _shares(guest)
        pages = sharing.private(ppns)
        if not self.break_large:
            pages = pages[~_in_large_page(guest, pages)]
        if pages.size == 0:
            return 0
        self.scanned += int(pages.size)
        group = self._groups[sharing.share_salt]
        scan = self._scans[guest.vm_id]
        hinted = group.table.hint_keys(pages + scan.first) != 0
        unchanged = hinted & sharing.unwritten(pages)
        self.unchanged += int(np.count_nonzero(unchanged))
        pages, hinted = PpnArray(pages[~unchanged]), hinted[~unchanged]
        if pages.size == 0:
            return 0
        hashes, known = sharing.share_known(pages, group.table)
        keys = _keys(hashes)
        shared = int(np.count_nonzero(known))
        if shared:
            scan.hints -= group.table.drop_hints(pages[known & hinted] + scan.first)
            pages, keys = PpnArray(pages[~known]), keys[~known]
        for _ in range(_ROUNDS):  # entries that were out of date are gone in the next
            done, left = self._scan_once(group, guest, pages, keys)
            shared += done
            pages, keys = PpnArray(pages[left]), keys[left]
            if pages.size == 0:
                break
        if group.table.frames > group.purge_at:
            group.purge(guest)
        return shared

    def _scan_once(
        self, group: _Group, guest: GuestMemory, ppns: PpnArray, keys: Keys
    ) -> tuple[int, Flags]:
        """Pages shared, and which of ``ppns`` met an entry that was out of date."""
        scan = self._scans[guest.vm_id]
        mpns, hints, more = group.table.match(ppns + scan.first, keys)
        scan.hints += more
        made = 0
        hinted = hints >= 0
        if hinted.any():
            mpns[hinted], made = self._from_hints(group, hints[hinted], keys[hinted])
        left = hinted & (mpns < 0)
        found = np.flatnonzero(mpns >= 0)
        if found.size == 0:
            return made, left
        sharing = _shares(guest)
        # A frame may be gone, or hold something else by now.
        usable = found[sharing.may_share(MpnArray(mpns[found]))]
        done = sharing.share(PpnArray(ppns[usable]), MpnArray(mpns[usable]))
        if done.size < found.size:
            wrong = found[~np.isin(ppns[found], done)]
            self.collisions += group.table.drop_frames(keys[wrong])
            left[wrong] = True
        return made + int(done.size), left

    def _from_hints(self, group: _Group, hints: PageNumbers, keys: Keys) -> tuple[MpnArray, int]:
        """Make frames of the pages that are ``hints`` of ``keys``, if they still have these keys.

        Returns the MPN for each, -1 where the hint was out of date, and how many were made.
        """
        pages, which = np.unique(hints, return_inverse=True)
        owners = group.owners(pages)
        now = np.zeros(pages.size, np.uint64)  # their keys as they are; 0: not to be shared
        for scan, mine in owners:
            now[mine] = self._present_keys(group, scan, PpnArray(pages[mine] - scan.first))
        same = now[which] == keys
        chosen = np.zeros(pages.size, np.bool_)
        chosen[which[same]] = True
        frames = np.full(pages.size, -1, np.int64)
        for scan, mine in owners:
            make = chosen & mine
            if make.any():
                sharing = _shares(scan.guest)
                frames[make] = sharing.make_shared(PpnArray(pages[make] - scan.first))
                self._not_of_zeroes(group, sharing, MpnArray(frames[make]))
        group.drop_hints(pages[chosen | (group.table.hint_keys(pages) != now)])
        group.table.set_frames(now[chosen], MpnArray(frames[chosen]))
        found = np.where(same, frames[which], -1)
        return MpnArray(found), int(np.count_nonzero(chosen))

    @staticmethod
    def _known_keys(group: _Group, scan: _Scan, ppns: PpnArray) -> Keys:
        """The keys of hints that are as they were when hashed; 0 for other pages."""
        keys = group.table.hint_keys(ppns + scan.first)
        keys[~_shares(scan.guest).unwritten(ppns)] = 0
        return keys

    def wrong_keys(self, guest: GuestMemory) -> PpnArray:
        """PPNs that count as unchanged and do not hash as they did: none, or the VM lied."""
        if guest.sharing is None:
            return PpnArray(np.zeros(0, np.int64))
        scan = self._scans[guest.vm_id]
        pages = PpnArray(np.arange(guest.pages))
        known = self._known_keys(self._groups[guest.sharing.share_salt], scan, pages)
        pages, known = PpnArray(pages[known != 0]), known[known != 0]
        return PpnArray(pages[_keys(guest.sharing.hash_pages(pages)) != known])

    def _present_keys(self, group: _Group, scan: _Scan, ppns: PpnArray) -> Keys:
        """The keys of pages by their content now; 0 for those that are not to be shared."""
        sharing = _shares(scan.guest)
        fit = np.isin(ppns, sharing.private(ppns))
        if not self.break_large:
            fit &= ~_in_large_page(scan.guest, ppns)
        keys = np.where(fit, self._known_keys(group, scan, ppns), np.uint64(0))
        fit &= keys == 0
        keys[fit] = _keys(sharing.hash_pages(PpnArray(ppns[fit])))
        return keys

    @staticmethod
    def _not_of_zeroes(group: _Group, sharing: FrameSharing, mpns: MpnArray) -> None:
        """Forget the frame of zeroes if it is one of ``mpns``, which have other content now.

        The pages that are mapped to it are counted by its entry.
        """
        key = max(sharing.zero_hash, 1)
        if group.table.frame(key) in mpns:
            group.table.drop_frames(np.array([key], np.uint64))
