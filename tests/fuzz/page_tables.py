# SPDX-License-Identifier: Apache-2.0
"""Page tables that map the guest onto itself, then some entries of them changed to anything."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from .guest_image import DATA, LOAD, MEMORY, TABLE_PAGES, TABLES, Mode

_P, _W, _U, _A, _D, _PS, _G, _NX = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63
_CR0_PG, _CR0_WP = 1 << 31, 1 << 16
_PSE, _PAE, _PGE, _SMEP, _SMAP = 1 << 4, 1 << 5, 1 << 7, 1 << 20, 1 << 21
_APIC = 0xFEE0_0000


@dataclass(frozen=True)
class Paging:
    """Page tables, and the registers they are used with."""

    tables: bytes
    cr0: int
    cr3: int
    cr4: int
    efer: int


class _Pool:
    """The pages that tables are made of; entries have ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pages: list[list[int]] = []

    def table(self) -> int:
        self.pages.append([0] * (4096 // self.size))
        return len(self.pages) - 1

    @staticmethod
    def address(number: int) -> int:
        return TABLES + 4096 * number

    def bytes(self) -> bytes:
        kind = "<512Q" if self.size == 8 else "<1024I"
        return b"".join(struct.pack(kind, *page) for page in self.pages)


def no_paging(draw: random.Random) -> Paging:
    return Paging(b"", draw.choice((0, 2, 4, 8, 0x20)), draw.choice((0, TABLES)), 0, 0)


def random_paging(draw: random.Random, mode: Mode) -> Paging:
    """Tables for ``mode``; with some luck the guest gets through its first instructions."""
    if mode is Mode.REAL or (mode is not Mode.LONG and draw.random() < 0.15):
        return no_paging(draw)
    cr0 = _CR0_PG | draw.choice((0, _CR0_WP)) | draw.choice((0, 0, 2, 8, 0x20))
    cr4 = draw.choice((0, _PGE)) | draw.choice((0, 0x600)) | draw.choice((0, 0, 0, _SMEP, _SMAP))
    nx = draw.choice((0, 1 << 11))
    if mode is Mode.LONG:
        pool = _Pool(8)
        cr3 = pool.address(_four_level(draw, pool))
        cr4 |= _PAE
        efer = 0x101 | nx
    elif draw.random() < 0.5:
        pool = _Pool(8)
        cr3 = pool.address(_pae(draw, pool))
        cr4, efer = cr4 | _PAE, nx
    else:
        pool = _Pool(4)
        large = draw.random() < 0.5
        cr3 = pool.address(_two_level(draw, pool, large=large))
        cr4, efer = cr4 | (_PSE if large or draw.random() < 0.5 else 0), 0
    _change(draw, pool)
    return Paging(pool.bytes(), cr0, cr3, cr4, efer)


def _directory(draw: random.Random, pool: _Pool, first: int, *, large: bool) -> int:
    """A page directory of 8-byte entries for the GiB from ``first`` on, as far as there is RAM."""
    number = pool.table()
    for slot in range(MEMORY >> 21 if first == 0 else 0):
        if large:
            pool.pages[number][slot] = slot << 21 | _P | _W | _U | _PS
            continue
        table = pool.table()
        for page in range(512):
            pool.pages[table][page] = slot << 21 | page << 12 | _P | _W | _U
        pool.pages[number][slot] = pool.address(table) | _P | _W | _U
    if first == 3 << 30:
        pool.pages[number][(_APIC >> 21) & 511] = _APIC | _P | _W | _PS
    return number


def _pae(draw: random.Random, pool: _Pool) -> int:
    root = pool.table()
    for slot, first in ((0, 0), (3, 3 << 30)):
        directory = _directory(draw, pool, first, large=draw.random() < 0.5)
        pool.pages[root][slot] = pool.address(directory) | _P
    return root


def _four_level(draw: random.Random, pool: _Pool) -> int:
    root, pointers = pool.table(), pool.table()
    pool.pages[root][0] = pool.address(pointers) | _P | _W | _U
    for slot, first in ((0, 0), (3, 3 << 30)):
        directory = _directory(draw, pool, first, large=draw.random() < 0.5)
        pool.pages[pointers][slot] = pool.address(directory) | _P | _W | _U
    return root


def _two_level(draw: random.Random, pool: _Pool, *, large: bool) -> int:
    root = pool.table()
    if large:
        pool.pages[root][0] = _P | _W | _U | _PS
        pool.pages[root][_APIC >> 22] = (_APIC >> 22) << 22 | _P | _W | _PS
        return root
    table = pool.table()
    pool.pages[root][0] = pool.address(table) | _P | _W | _U
    for page in range(1024):
        pool.pages[table][page] = page << 12 | _P | _W | _U
    return root


def strange_entry(draw: random.Random, size: int) -> int:
    """An entry of a page table that points to RAM, a table, itself, a device or nowhere."""
    target = draw.choice(
        (
            TABLES + draw.randrange(TABLE_PAGES) * 4096,
            DATA + draw.randrange((MEMORY - DATA) >> 12) * 4096,
            LOAD + draw.randrange(0x20) * 4096,
            draw.choice((MEMORY, _APIC, 0xFEC0_0000, 0xB8000, 0xA0000, 0xF0000, 0x4000_0000)),
            draw.getrandbits(20 if size == 4 else 40) << 12,
        )
    )
    entry = target | draw.choice((_P, _P | _W, _P | _W | _U, _P | _U, _P | _W | _U, 0))
    for bit, chance in ((_PS, 0.3), (_A, 0.4), (_D, 0.4), (_G, 0.2), (0xE00, 0.1), (0x18, 0.1)):
        entry |= bit if draw.random() < chance else 0
    if size == 8:
        entry |= _NX if draw.random() < 0.2 else 0
        entry |= draw.getrandbits(12) << 51 if draw.random() < 0.05 else 0
    return entry & (1 << 8 * size) - 1


def _change(draw: random.Random, pool: _Pool) -> None:
    """Some entries become anything; those that map the guest's first pages only now and then."""
    slots = 4096 // pool.size
    wild = draw.random() < 0.15
    needed = {(LOAD >> 12) + page for page in range(0x40)}
    while len(pool.pages) < TABLE_PAGES:
        filler = pool.table()
        for slot in range(slots):
            if draw.random() < 0.1:
                pool.pages[filler][slot] = strange_entry(draw, pool.size)
    for _ in range(draw.choice((0, 3, 20, 200, 1000))):
        number, slot = draw.randrange(8), draw.randrange(slots)
        entry = pool.pages[number][slot]
        if not wild and entry and (entry >> 12 in needed or (number < 4 and slot < 4)):
            continue
        pool.pages[number][slot] = strange_entry(draw, pool.size)
