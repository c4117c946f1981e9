# SPDX-License-Identifier: Apache-2.0
"""All that a guest's page tables map, from the root down: the other way than one address at a time.

Used to draw guest virtual memory, and to answer which guest virtual addresses lead to a page. A
guest's tables may be anything, tables that point to themselves included: every table is read once
for each place it stands in, and ``limit`` bounds the number of them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memvirt.address import PAGE_BYTES, PAGE_SHIFT, PhysicalPageNumber
from memvirt.mmu.entry import (
    CR4_PSE,
    ENTRY_ADDRESS_MASK,
    LARGE,
    MODE_2LEVEL,
    MODE_OFF,
    MODE_PAE,
    NO_EXECUTE,
    PRESENT,
    USER,
    WRITABLE,
)

from .guest_rules import GuestRules
from .view import PageUnavailable, VmView

MOST_TABLES = 4096
_ALL = PRESENT | USER | WRITABLE
_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class MappedRun:
    """Guest virtual pages in a row that map guest-physical pages in a row, with equal rights."""

    gva: int
    ppn: int
    pages: int  # of 4 KiB
    page_bytes: int  # size of the guest's pages
    writable: bool
    user: bool
    executable: bool

    @property
    def end(self) -> int:
        return self.gva + self.pages * PAGE_BYTES


@dataclass(slots=True)
class _Walk:
    view: VmView
    mode: int
    tables: int = 0

    def entries(
        self, gpa: int, count: int, size: int
    ) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """``count`` entries of a table; none if it lies beyond the VM's memory."""
        ppn, offset = gpa >> PAGE_SHIFT, gpa % PAGE_BYTES
        self.tables += 1
        if ppn >= self.view.pages:
            return np.zeros(0, np.uint64)
        try:
            content = self.view.read_page(PhysicalPageNumber(ppn))[offset : offset + count * size]
        except PageUnavailable:
            return np.zeros(0, np.uint64)
        return np.frombuffer(content, np.uint32 if size == 4 else np.uint64).astype(np.uint64)


def _canonical(gva: int, mode: int) -> int:
    bits = 57 if mode == 5 else 48
    return gva | (1 << 64) - (1 << bits) if mode >= 4 and gva >> (bits - 1) & 1 else gva


def _page_runs(
    walk: _Walk, entries: np.ndarray[tuple[int], np.dtype[np.uint64]], base: int, rights: int
) -> Iterator[MappedRun]:
    """The runs of one table of the lowest level, whose entries are ``entries``, by whole arrays."""
    mask = 0xFFFF_F000 if walk.mode == MODE_2LEVEL else ENTRY_ADDRESS_MASK
    index = np.flatnonzero(entries & np.uint64(PRESENT))
    if not index.size:
        return
    entry = entries[index]
    ppn = ((entry & np.uint64(mask)) >> np.uint64(PAGE_SHIFT)).astype(np.int64)
    held = entry & np.uint64(rights & (WRITABLE | USER))
    forbidden = np.uint64(NO_EXECUTE & _WORD)
    held |= (entry | np.uint64(rights & _WORD)) & forbidden
    broken = (np.diff(index) != 1) | (np.diff(ppn) != 1) | (held[1:] != held[:-1])
    starts = [0, *(np.flatnonzero(broken) + 1).tolist()]
    for start, end in zip(starts, [*starts[1:], index.size], strict=True):
        bits = int(held[start])
        yield MappedRun(
            _canonical(base | int(index[start]) << PAGE_SHIFT, walk.mode), int(ppn[start]),
            end - start, PAGE_BYTES, bool(bits & WRITABLE), bool(bits & USER),
            not bits & NO_EXECUTE,
        )  # fmt: skip


def _leaves(
    walk: _Walk, table: int, level: int, base: int, rights: int, limit: int
) -> Iterator[MappedRun]:
    """The leaves below one table, ascending."""
    two_level = walk.mode == MODE_2LEVEL
    size, bits = (4, 10) if two_level else (8, 9)
    count = 4 if walk.mode == MODE_PAE and level == 3 else 1 << bits
    shift = PAGE_SHIFT + bits * (level - 1)
    entries = walk.entries(table, count, size)
    if level == 1:
        yield from _page_runs(walk, entries, base, rights)
        return
    mask = 0xFFFF_F000 if two_level else ENTRY_ADDRESS_MASK
    may_be_large = level in (2, 3) and not (walk.mode == MODE_PAE and level == 3)
    if two_level:
        may_be_large = level == 2 and bool(walk.view.registers["cr4"] & CR4_PSE)
    for index in np.flatnonzero(entries & np.uint64(PRESENT)).tolist():
        entry = int(entries[index])
        gva = base | index << shift
        held = rights & entry | (rights | entry) & NO_EXECUTE
        if walk.mode == MODE_PAE and level == 3:
            held = rights  # a PDPTE of PAE has no rights
        if may_be_large and entry & LARGE:
            target = entry & mask & ~((1 << shift) - 1)
            if two_level and level == 2:
                target |= (entry >> 13 & 0xFF) << 32
            yield MappedRun(
                _canonical(gva, walk.mode), target >> PAGE_SHIFT, 1 << (shift - PAGE_SHIFT),
                1 << shift, bool(held & WRITABLE), bool(held & USER), not held & NO_EXECUTE,
            )  # fmt: skip
        elif walk.tables < limit:
            yield from _leaves(walk, entry & mask, level - 1, gva, held, limit)


def _merge(runs: Iterator[MappedRun]) -> Iterator[MappedRun]:
    last: MappedRun | None = None
    for run in runs:
        if last is not None and (
            (last.end, last.ppn + last.pages) == (run.gva, run.ppn)
            and (last.page_bytes, last.writable, last.user, last.executable)
            == (run.page_bytes, run.writable, run.user, run.executable)
        ):
            last = MappedRun(
                last.gva, last.ppn, last.pages + run.pages, run.page_bytes, run.writable,
                run.user, run.executable,
            )  # fmt: skip
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


def mapped_runs(view: VmView, *, limit: int = MOST_TABLES) -> tuple[list[MappedRun], bool]:
    """What the guest's current tables map, by ascending guest virtual address; True if that is all.

    At most ``limit`` tables are read. Nothing is changed: no accessed bit is set.
    """
    mode = GuestRules(view).mode
    if mode == MODE_OFF:
        run = MappedRun(0, 0, view.pages, PAGE_BYTES, True, True, True)
        return [run], True
    walk = _Walk(view, mode)
    mask = 0xFFFF_FFE0 if mode == MODE_PAE else ENTRY_ADDRESS_MASK
    root = view.registers["cr3"] & (0xFFFF_F000 if mode == MODE_2LEVEL else mask)
    runs = list(_merge(_leaves(walk, root, mode, 0, _ALL, limit)))
    return runs, walk.tables < limit


def addresses_of(runs: list[MappedRun], ppn: int) -> list[int]:
    """Guest virtual addresses of every mapping of ``ppn`` in ``runs``, ascending."""
    return [
        run.gva + (ppn - run.ppn) * PAGE_BYTES
        for run in runs
        if run.ppn <= ppn < run.ppn + run.pages
    ]
