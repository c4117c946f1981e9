# SPDX-License-Identifier: Apache-2.0
"""Paths of page-table entries, enumerated, and what an access through each must come to.

A *path* is the entries from the root to the page that one address goes through. A case is a path,
the control bits, and two accesses in a row. ``expect`` is the independent model over whole arrays:
it shares no code with the walkers, and ``test_access_enumeration`` holds it against the slow model
of ``oracle``, case by case. Rules: Intel SDM vol. 3A sections 4.3 to 4.8.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import oracle

Array = np.ndarray[Any, np.dtype[Any]]

P, W, U, A, D, PS = 1, 2, 4, 0x20, 0x40, 0x80
NX = -(1 << 63)
READ, WRITE, FETCH = 0, 1, 2
KINDS = ("read", "write", "fetch")
PHYSICAL_BITS = 40

DATA_PPN = 9  # every path ends in this page, at its byte OFFSET
OFFSET = 0x678


@dataclass(frozen=True)
class Shape:
    """A paging mode and the level whose entry maps the page."""

    name: str
    pae: bool
    lma: bool
    la57: bool
    leaf: int

    @property
    def wide(self) -> bool:
        return self.pae

    @property
    def levels(self) -> list[int]:
        """Levels of the path's entries, from the root."""
        top = (5 if self.la57 else 4) if self.lma else 3 if self.pae else 2
        return list(range(top, self.leaf - 1, -1))

    @property
    def index_bits(self) -> int:
        return 9 if self.wide else 10

    @property
    def gva(self) -> int:
        """The address: its low bits reach DATA_PPN in a page of any size at guest-physical 0."""
        top = self.levels[0]
        gva = DATA_PPN << 12 | OFFSET
        for level in self.levels:
            if level > max(self.leaf, 1):
                index = 2 if level == top else level + 2
                gva |= index << (12 + (level - 1) * self.index_bits)
        return gva

    def slot(self, level: int) -> int:
        """Index of the path's entry in its table."""
        mask = 3 if self.pae and not self.lma and level == 3 else (1 << self.index_bits) - 1
        return (self.gva >> (12 + (level - 1) * self.index_bits)) & mask

    def table_ppn(self, level: int) -> int:
        """The page that holds the table of a level."""
        return level

    def base(self, level: int) -> int:
        """Address bits, and PS, of the path's entry of a level."""
        if level > self.leaf:
            return self.table_ppn(level - 1) << 12
        return DATA_PPN << 12 if level == 1 else PS

    def is_pdpte(self, level: int) -> bool:
        """A PAE PDPTE: no rights, no accessed bit, its own reserved bits."""
        return self.pae and not self.lma and level == 3


SHAPES = [
    Shape("32-bit, 4 KiB", False, False, False, 1),
    Shape("32-bit, 4 MiB", False, False, False, 2),
    Shape("PAE, 4 KiB", True, False, False, 1),
    Shape("PAE, 2 MiB", True, False, False, 2),
    Shape("4-level, 4 KiB", True, True, False, 1),
    Shape("4-level, 2 MiB", True, True, False, 2),
    Shape("4-level, 1 GiB", True, True, False, 3),
    Shape("5-level, 4 KiB", True, True, True, 1),
    Shape("5-level, 2 MiB", True, True, True, 2),
    Shape("5-level, 1 GiB", True, True, True, 3),
]


# What is enumerated ----------------------------------------------------------------------------


def entry_flags(shape: Shape, level: int) -> list[int]:
    """All states of one entry of the path, illegal and equal ones pruned.

    - An entry that is not present has no further meaning: two of them stand for all, one empty,
      one with every other bit (it must be ignored).
    - A PAE PDPTE has no rights and no accessed bit: P alone, and its reserved bits.
    - NX exists in wide entries only; D only where a page is mapped.
    """
    absent = [0, W | U | A | D | (NX if shape.wide else 0)]
    if shape.is_pdpte(level):
        return [P, 0, P | W, P | U, P | 1 << 5, P | 1 << 8, P | 1 << PHYSICAL_BITS, P | NX]
    bits = [W, U, A] + ([NX] if shape.wide else []) + ([D] if level == shape.leaf else [])
    states = [
        P | sum(chosen)
        for count in range(len(bits) + 1)
        for chosen in itertools.combinations(bits, count)
    ]
    return states + absent + reserved_states(shape, level)


def reserved_states(shape: Shape, level: int) -> list[int]:
    """Present entries with one reserved bit, as far as the level has reserved bits."""
    every = P | W | U | A
    if not shape.wide:
        # Bit 21 of a 4 MiB entry is reserved; bits 20:13 are its address bits 39:32.
        return [every | 1 << 21] if level == shape.leaf == 2 else []
    states = [every | 1 << PHYSICAL_BITS, every | 1 << 51]
    if not shape.lma:
        states += [every | 1 << 52, every | 1 << 62]
    if level >= 4:
        states.append(every | PS)
    if level == shape.leaf > 1:
        states += [every | 1 << 13, every | 1 << (11 + 9 * (level - 1))]
    return states


def paths(shape: Shape, varied: int) -> Array:
    """Paths as rows of entries from the root; at most ``varied`` of those above the leaf vary.

    The others are present, with all rights, and not accessed yet. Once an entry ends the walk (it
    is absent) those below it are never read: the leaf then takes one state.
    """
    levels = shape.levels
    uppers, leaf = levels[:-1], levels[-1]
    rows: dict[tuple[int, ...], None] = {}
    for chosen in itertools.combinations(uppers, min(varied, len(uppers))):
        choices = [
            entry_flags(shape, level)
            if level in chosen
            else [P if shape.is_pdpte(level) else P | W | U]
            for level in uppers
        ]
        for upper in itertools.product(*choices):
            ends = any(not flags & P for flags in upper)
            for flags in [P | W | U] if ends else entry_flags(shape, leaf):
                rows[(*upper, flags)] = None
    base = np.array([shape.base(level) for level in levels], np.int64)
    return np.array(list(rows), np.int64) | base


@dataclass
class Cases:
    """Paths times control bits times two accesses, as arrays with one element a case."""

    shape: Shape
    path: Array  # (cases, entries)
    wp: Array
    smep: Array
    smap: Array
    ac: Array
    nxe: Array
    user: Array  # (cases, 2): of each access
    kind: Array  # (cases, 2)

    def __len__(self) -> int:
        return len(self.path)

    def part(self, which: slice | Array) -> Cases:
        arrays = (self.path, self.wp, self.smep, self.smap, self.ac, self.nxe, self.user, self.kind)
        return Cases(self.shape, *(each[which] for each in arrays))

    def cpu(self, i: int, access: int) -> oracle.Cpu:
        """The slow model's processor for one access of a case."""
        return oracle.Cpu(
            pae=self.shape.pae,
            lma=self.shape.lma,
            la57=self.shape.la57,
            pse=True,
            wp=bool(self.wp[i]),
            smep=bool(self.smep[i]),
            smap=bool(self.smap[i]),
            ac=bool(self.ac[i]),
            nxe=bool(self.nxe[i]),
            user=bool(self.user[i, access]),
            cr3=self.shape.table_ppn(self.shape.levels[0]) << 12,
            physical_bits=PHYSICAL_BITS,
        )


def controls(shape: Shape) -> list[tuple[int, int, int, int, int]]:
    """(WP, SMEP, SMAP, AC, NXE). AC means nothing without SMAP; NXE nothing in 32-bit paging."""
    supervisor = [(0, 0), (1, 0), (1, 1)]
    return [
        (wp, smep, *access, nxe)
        for wp in (0, 1)
        for smep in (0, 1)
        for access in supervisor
        for nxe in ((0, 1) if shape.wide else (0,))
    ]


ACCESSES = [(user, kind) for user in (0, 1) for kind in (READ, WRITE, FETCH)]


def enumerate_cases(shape: Shape, rows: Array, *, all_pairs: bool) -> Cases:
    """Paths, controls and first accesses, each with every second access, or with one in turn.

    In turn means: the second access of neighbouring cases differs, and over the enumeration every
    first access meets every second.
    """
    registers = np.array(controls(shape), np.int8)
    accesses = np.array(ACCESSES, np.int8)
    seconds = len(ACCESSES) if all_pairs else 1
    path, register, first, second = (
        each.reshape(-1)
        for each in np.meshgrid(
            np.arange(len(rows), dtype=np.int32),
            np.arange(len(registers), dtype=np.int32),
            np.arange(len(ACCESSES), dtype=np.int32),
            np.arange(seconds, dtype=np.int32),
            indexing="ij",
        )
    )
    if not all_pairs:
        second = (first + register + path) % len(ACCESSES)
    pair = np.stack([accesses[first], accesses[second]], axis=1)
    return Cases(shape, rows[path], *registers[register].T, pair[:, :, 0], pair[:, :, 1])


# What must come of it --------------------------------------------------------------------------


@dataclass
class Expected:
    """Of one access in each case: #PF error code (-1: allowed) and level, the entries after it."""

    error: Array
    level: Array
    path: Array

    @property
    def allowed(self) -> Array:
        return np.asarray(self.error < 0)


def _reserved(shape: Shape, level: int, entry: Array, nxe: Array) -> Array:
    none = np.zeros(entry.shape, bool)
    page = entry & PS != 0
    if not shape.wide:
        return (entry & 1 << 21 != 0) & page if level == 2 else none
    above = ((1 << 51) - 1) ^ ((1 << PHYSICAL_BITS) - 1) | 1 << 51
    if not shape.lma:
        above |= ((1 << 63) - 1) ^ ((1 << 52) - 1)
    if shape.is_pdpte(level):
        return entry & (above | 0b1_1110_0110 | NX) != 0
    bad = (entry & above != 0) | ((entry < 0) & (nxe == 0))
    if level >= 4:
        return bad | page
    if level > 1:
        low = {2: 0x1F_E000, 3: 0x3FFF_E000}[level]
        bad |= page & (entry & low != 0)
    return bad


def expect(cases: Cases, path: Array, user: Array, kind: Array) -> Expected:
    """What one access of each case must come to, from the entries as they are before it."""
    shape = cases.shape
    user = user.astype(bool)
    count = len(path)
    error = np.full(count, -1, np.int64)
    fault_level = np.zeros(count, np.int64)
    instruction = (cases.smep != 0) | ((cases.nxe != 0) & shape.pae)
    why = np.where(kind == WRITE, 2, 0) | np.where(user, 4, 0)
    why |= np.where((kind == FETCH) & instruction, 16, 0)
    alive = np.ones(count, bool)
    user_page, writable, no_execute = np.ones(count, bool), np.ones(count, bool), ~alive
    for position, level in enumerate(shape.levels):
        entry = path[:, position]
        absent = alive & (entry & P == 0)
        reserved = alive & ~absent & _reserved(shape, level, entry, cases.nxe)
        error = np.where(absent, why, np.where(reserved, why | 9, error))
        fault_level = np.where(absent | reserved, level, fault_level)
        alive &= ~absent & ~reserved
        if not shape.is_pdpte(level):
            user_page &= entry & U != 0
            writable &= entry & W != 0
            no_execute = no_execute | (shape.wide & (entry < 0))
    store, fetch = kind == WRITE, kind == FETCH
    smap = (cases.smap != 0) & (cases.ac == 0)
    of_user = ~user_page | (store & ~writable)
    of_supervisor = store & ~writable & (cases.wp != 0)
    of_supervisor |= user_page & np.where(fetch, cases.smep != 0, smap)
    refused = alive & (np.where(user, of_user, of_supervisor) | (fetch & no_execute))
    error = np.where(refused, why | 1, error)
    fault_level = np.where(refused, shape.leaf, fault_level)
    after = path.copy()
    done = alive & ~refused
    for position, level in enumerate(shape.levels):
        if not shape.is_pdpte(level):
            after[done, position] |= A
    after[done & store, -1] |= D
    return Expected(error, fault_level, after)


def memory_of(shape: Shape, path: Array, pages: int) -> bytearray:
    """Guest memory with one path in it, for the slow model."""
    memory = bytearray(pages << 12)
    size = 8 if shape.wide else 4
    for level, entry in zip(shape.levels, path.tolist(), strict=True):
        at = (shape.table_ppn(level) << 12) + shape.slot(level) * size
        memory[at : at + size] = (entry & (1 << 8 * size) - 1).to_bytes(size, "little")
    return memory
