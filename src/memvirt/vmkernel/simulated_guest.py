# SPDX-License-Identifier: Apache-2.0
"""A VM without a processor, for policy studies: metadata only, a few bytes for each granule.

Its guest is a working set: the first part of its memory, all of which it touches whenever it runs.
A step costs what changes: pages that come back, marks that end. What is resident and stays so is
not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from memvirt.address import MachinePageNumber, MpnArray, PpnArray
from memvirt.share_table import ShareTable

from .managed import MAXIMUM_GRANT
from .protocols import (
    Balloon,
    Eviction,
    Flags,
    Hashes,
    KeptPages,
    MemoryUsage,
    Place,
)
from .simulated_machine import SimulatedMachine

_UNIQUE = 1 << 40  # above: hashes of pages that equal no other
_CHUNK = 1 << 14  # PPNs looked at together in search of those that are not resident
_NONE = PpnArray(np.zeros(0, np.int64))


class PageState(IntEnum):
    """Where a simulated page is."""

    UNMAPPED = 0
    PRIVATE = 1
    SHARED = 2
    COMPRESSED = 3
    SWAPPED = 4


# Plain numbers: in Python 3.11 an enumeration's members are found by a search.
_UNMAPPED, _PRIVATE, _SHARED, _COMPRESSED, _SWAPPED = (int(state) for state in PageState)
_IS_ABSENT = np.array([state not in (_PRIVATE, _SHARED) for state in PageState])


class _Marks:
    """Marks on pages; each ends when the guest touches the page."""

    def __init__(self, pages: int) -> None:
        self.set = np.zeros(pages, np.bool_)
        self._new: list[PpnArray] = []  # marked since the guest last ran
        self._kept: list[PpnArray] = []  # marked, and beyond what it touched
        self._touched = 0

    def mark(self, ppns: PpnArray) -> None:
        self.set[ppns] = True
        self._new.append(ppns)

    def touch(self, end: int) -> None:
        """The guest has touched all PPNs below ``end``."""
        if end > self._touched:
            self._new += self._kept
            self._kept = []
        self._touched = end
        for ppns in self._new:
            below = ppns < end
            self.set[ppns[below]] = False
            if not below.all():
                self._kept.append(ppns[~below])
        self._new = []
        if len(self._kept) > 64:  # the same page may be marked again and again
            self._kept = [PpnArray(np.flatnonzero(self.set))]


class SimulatedGuest:
    """A VM of ``memory`` pages that touches the first ``active`` part of them when it runs.

    One PPN stands for ``granule`` pages. ``compressible``: part of the pages that shrink to a half.
    ``common``: part of the pages whose content is that of the same page in every other VM.
    """

    trouble = ""
    large_pages = None
    zero_hash = 0  # no page is said to be zero

    def __init__(
        self,
        machine: SimulatedMachine,
        memory: int,
        *,
        vm_id: int,
        active: float,
        compressible: float = 0.0,
        common: float = 0.0,
        cache_max: int = 0,
        share_salt: int = 0,
        balloon: Balloon | None = None,
        granule: int = 1,
    ) -> None:
        pages = memory // granule
        self.machine = machine
        self.pages = pages
        self.granule = granule
        self.vm_id = vm_id
        self.active = active
        self.share_salt = share_salt
        self.balloon = balloon
        self.reserve = 0
        self.faults = 0  # pages
        self.waited = 0  # steps in which it did not get all it wanted
        self._common = common
        self._compressible = int(compressible * 256)
        self._cache_max = cache_max
        self._state = np.zeros(pages, np.uint8)
        self._sample = _NONE
        self._touched = 0  # all below have been touched since it was drawn
        self._watched = _Marks(pages)
        self._frame = np.zeros(0, np.int64)  # of shared pages; made when the first is
        self._counts = [0] * len(PageState)  # PPNs in each state
        self._counts[_UNMAPPED] = pages
        self._totals = dict.fromkeys(("zips", "unzips", "reads", "writes"), 0)  # PPNs
        # PPNs below the cursor are resident, but for those in ``_gone`` (ascending) and ``_taken``.
        self._cursor = 0
        self._gone = _NONE
        self._taken: list[PpnArray] = []
        self._usage: MemoryUsage | None = None  # None: something has changed
        self._usage_of = -1  # the references it was computed with
        self._kept: dict[str, KeptPages] = {}  # empty: something of it has changed

    # The guest ---------------------------------------------------------------------------------

    def step(self) -> bool:
        """Touch the working set; False if there were not frames enough for all of it."""
        working = round(self.pages * self.active)
        self._touched = max(self._touched, working)
        self._watched.touch(working)
        missing, satisfied = self._missing(working, self.reserve // self.granule)
        if missing.size:
            self._bring_back(missing)
            pages = int(missing.size) * self.granule
            self.reserve -= pages
            self.faults += pages
        return satisfied

    def _missing(self, end: int, most: int) -> tuple[PpnArray, bool]:
        """The first PPNs below ``end`` that are not resident, up to ``most``; and if these are all.

        They are brought back now: that is the caller's promise.
        """
        if self._taken:
            gone = PpnArray(np.concatenate((self._gone, *self._taken)))
            gone.sort()
            self._gone = gone[np.append(gone[1:] != gone[:-1], True)] if gone.size else gone
            self._taken = []
        if self._gone.size:
            self._gone = self._gone[_IS_ABSENT[self._state[self._gone]]]
        wanted = int(np.searchsorted(self._gone, end))
        first = min(wanted, most)
        parts = [self._gone[:first]]
        self._gone = self._gone[first:]
        if wanted > most:
            return parts[0], False
        most -= first
        while self._cursor < end:
            chunk = self._state[self._cursor : min(self._cursor + _CHUNK, end)]
            absent = PpnArray(np.flatnonzero(_IS_ABSENT[chunk]) + self._cursor)
            parts.append(absent[:most])
            if absent.size > most:
                self._cursor = int(absent[most])
                return PpnArray(np.concatenate(parts)), False
            most -= int(absent.size)
            self._cursor += chunk.size
        return PpnArray(np.concatenate(parts)) if len(parts) > 1 else parts[0], True

    def _bring_back(self, ppns: PpnArray) -> None:
        """Make pages private, wherever they were; their frames are taken already."""
        zipped, swapped = self._counts[_COMPRESSED], self._counts[_SWAPPED]
        self._set(ppns, _PRIVATE)
        unzips = zipped - self._counts[_COMPRESSED]
        reads = swapped - self._counts[_SWAPPED]
        if unzips or reads:
            self._totals["unzips"] += unzips
            self._totals["reads"] += reads
            self._kept = {}

    def populate(self, pages: int) -> None:
        """Give the first ``pages`` pages frames at once, without the VMkernel's asking.

        Raises NoFrames.
        """
        missing = PpnArray(np.flatnonzero(self._state[: -(-pages // self.granule)] == _UNMAPPED))
        self.machine.take(int(missing.size) * self.granule)
        self._set(missing, _PRIVATE)

    def _set(self, ppns: PpnArray, state: int) -> None:
        """Move pages to ``state``, keeping the counts and the frames of the cache right."""
        if len(ppns) == 0:
            return
        frames = self._compressed_frames()
        for old, count in enumerate(np.bincount(self._state[ppns]).tolist()):
            self._counts[old] -= count
        self._state[ppns] = state
        self._counts[state] += len(ppns)
        self.machine.used += self._compressed_frames() - frames
        if state != _PRIVATE and state != _SHARED:
            self._taken.append(ppns[ppns < self._cursor])
            self._kept = {}
        self._usage = None

    def _compressed_frames(self) -> int:
        return -(-self._counts[_COMPRESSED] * self.granule // 2)

    # GuestMemory, with all but large pages -------------------------------------------------------

    @property
    def sampling(self) -> SimulatedGuest:
        return self

    @property
    def reclaim(self) -> SimulatedGuest:
        return self

    @property
    def sharing(self) -> SimulatedGuest:
        return self

    @property
    def frames(self) -> SimulatedGuest:
        return self

    def usage(self) -> MemoryUsage:
        """As ``GuestMemory``; made anew only if something has changed."""
        shared = self._counts[_SHARED]
        changes = self.machine.reference_changes if shared else -1
        usage = self._usage
        if usage is not None and usage.reserve_frames == self.reserve and self._usage_of == changes:
            return usage
        if not self._kept:
            self._kept = self._kept_pages()
        cost = usage.shared_cost if usage is not None else 0.0
        if shared and (usage is None or self._usage_of != changes):
            cost = self.granule * self._shared_cost()
        self._usage_of = changes
        self._usage = MemoryUsage(
            self._counts[_PRIVATE] * self.granule,
            shared * self.granule,
            cost,
            self._counts[_UNMAPPED] * self.granule,
            self._kept,
            0,
            self.reserve,
        )
        return self._usage

    def _shared_cost(self) -> float:
        frames = self._frame[self._state == _SHARED]
        return float((1 / self.machine.references[frames]).sum())

    def _kept_pages(self) -> dict[str, KeptPages]:
        each, totals = self.granule, self._totals
        compressed = KeptPages(
            self._counts[_COMPRESSED] * each,
            self._compressed_frames(),
            totals["zips"] * each,
            totals["unzips"] * each,
        )
        swapped = self._counts[_SWAPPED] * each
        writes, reads = totals["writes"] * each, totals["reads"] * each
        return {"compress": compressed, "swap": KeptPages(swapped, 0, writes, reads)}

    def begin_sample(self, ppns: PpnArray) -> None:
        self._sample, self._touched = ppns, 0

    def untouched(self, ppns: PpnArray) -> Flags:
        """As ``ActivitySampling``, of the last sample."""
        beyond = np.asarray(ppns >= self._touched)
        return beyond if ppns is self._sample else beyond & np.isin(ppns, self._sample)

    def watch(self, ppns: PpnArray) -> None:
        self._watched.mark(ppns)

    def idle(self, ppns: PpnArray) -> Flags:
        return self._watched.set[ppns]

    def private(self, ppns: PpnArray) -> PpnArray:
        return ppns[self._state[ppns] == _PRIVATE]

    def reclaimable(self, ppns: PpnArray) -> Flags:
        return np.asarray(self._state[ppns] == _PRIVATE)

    def reclaimable_pages(self) -> PpnArray:
        return PpnArray(np.flatnonzero(self._state == _PRIVATE))

    def shared_pages(self) -> PpnArray:
        return PpnArray(np.flatnonzero(self._state == _SHARED))

    def evict(self, ppns: PpnArray, places: Sequence[Place]) -> Eviction:
        names = {place.name for place in places}
        resident = self.private(PpnArray(np.asarray(ppns, np.int64)))
        room = 2 * (self._cache_max - self._compressed_frames()) // self.granule
        squeezed, swapped = resident[:0], resident
        if room > 0 and self._compressible and "compress" in names:
            small = (resident * 0x9E3779B1 >> 7) & 255 < self._compressible
            small &= np.cumsum(small) <= room
            squeezed, swapped = resident[small], resident[~small]
        refused = 0
        if "swap" not in names:
            swapped, refused = swapped[:0], int(swapped.size)
        zips, writes = int(squeezed.size), int(swapped.size)
        self.machine.put_back((zips + writes) * self.granule)
        self._totals["zips"] += zips
        self._totals["writes"] += writes
        self._set(squeezed, _COMPRESSED)
        self._set(swapped, _SWAPPED)
        placed = {"compress": zips * self.granule, "swap": writes * self.granule}
        return Eviction(placed, refused * self.granule)

    def restore(self, most: int) -> int:
        kept = PpnArray(np.flatnonzero(self._state >= _COMPRESSED)[: most // self.granule])
        pages = int(kept.size) * self.granule
        self.machine.take(pages)
        self._bring_back(kept)
        return pages

    def hash_pages(self, ppns: PpnArray) -> Hashes:
        common = (ppns * 0x85EBCA77 >> 9) % 1000 < self._common * 1000
        unique = _UNIQUE + (self.vm_id << 40) + ppns
        return np.where(common, ppns + 1, unique).astype(np.uint64)

    def share_known(self, ppns: PpnArray, table: ShareTable) -> tuple[Hashes, Flags]:
        return self.hash_pages(ppns), np.zeros(ppns.size, np.bool_)

    def unwritten(self, ppns: PpnArray) -> Flags:
        return np.asarray(self._state[ppns] == _PRIVATE)  # its pages are what they are by number

    def make_shared(self, ppns: PpnArray) -> MpnArray:
        new = [self.machine.new_shared(self.share_salt) for _ in range(ppns.size)]
        mpns = MpnArray(np.array(new, np.int64))
        self._use_shared(ppns, mpns)
        return mpns

    def may_share(self, mpns: MpnArray) -> Flags:
        return np.asarray(self.machine.salts[mpns] == self.share_salt)

    def share(self, ppns: PpnArray, mpns: MpnArray) -> PpnArray:
        fit = self._state[ppns] == _PRIVATE
        pages, frames = ppns[fit], mpns[fit]
        if pages.size:
            self.machine.add_references(frames)
            self._use_shared(pages, frames)
            self.machine.put_back(int(pages.size) * self.granule)
        return pages

    def _use_shared(self, ppns: PpnArray, mpns: MpnArray) -> None:
        if self._frame.size == 0:
            self._frame = np.zeros(self.pages, np.int64)
        self._frame[ppns] = mpns
        self._set(ppns, _SHARED)

    def mapped_to(self, mpns: Sequence[MachinePageNumber]) -> int:
        return 0  # no page is said to be zero

    def settle(self) -> None:
        pass

    def submit_writes(self) -> None:
        pass

    def grant(self, frames: int) -> int:
        frames = min(frames, MAXIMUM_GRANT * self.granule - self.reserve)
        self.machine.take(frames)
        self.reserve += frames
        return frames

    def give_back(self, keep: int) -> int:
        surplus = self.reserve - keep
        if surplus <= 0:
            return 0
        self.machine.put_back(surplus)
        self.reserve -= surplus
        return surplus
