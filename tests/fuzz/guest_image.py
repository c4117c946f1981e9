# SPDX-License-Identifier: Apache-2.0
"""A Multiboot image around pieces of code and page tables (``hostile_guest.S`` begins it)."""

from __future__ import annotations

import random
import struct
from enum import IntEnum
from functools import cache
from pathlib import Path

from tests.small_guest import assemble

LOAD = 0x100000
_PAGE = 4096
STACK, USER_STACK = LOAD + 0xF000, LOAD + 0xE000
CODE = LOAD + 0x10000
PIECE_BYTES = 128
PIECES = 96
TABLES = LOAD + 0x20000
TABLE_PAGES = 32
DATA = LOAD + 0x40000  # to the end of memory
MEMORY = 4 << 20
_RESUME16, _RESUME32, _RESUME64 = 0x8020, LOAD + 0x400, LOAD + 0x600


class Mode(IntEnum):
    """What the pieces are executed in."""

    REAL = 0
    PROTECTED_16 = 1
    PROTECTED_32 = 2
    LONG = 3

    @property
    def bits(self) -> int:
        return (16, 16, 32, 64)[self]


@cache
def _beginning() -> bytes:
    return assemble((Path(__file__).parent / "hostile_guest.S").read_text())


def _descriptor(base: int, limit: int, access: int, flags: int) -> int:
    low = limit & 0xFFFF | (base & 0xFFFFFF) << 16 | access << 40
    return low | (limit >> 16 & 0xF) << 48 | flags << 52 | (base >> 24 & 0xFF) << 56


def _gdt(draw: random.Random) -> bytes:
    flat, tss = 0xFFFFF, LOAD + 0x6000
    entries = [
        0,
        _descriptor(0, flat, 0x9B, 0xC),  # 0x08 32-bit code
        _descriptor(0, flat, 0x93, 0xC),  # 0x10 data
        _descriptor(0, flat, 0x9B, 0xA),  # 0x18 64-bit code
        _descriptor(0, 0xFFFF, 0x9B, 0x0),  # 0x20 16-bit code
        _descriptor(0, 0xFFFF, 0x93, 0x0),  # 0x28 16-bit data
        _descriptor(CODE, 0xFFFF, 0x9B, 0x0),  # 0x30 16-bit code at CODE
        _descriptor(tss, draw.choice((103, 0x2067, 60)), 0x89, 0x0),  # 0x38 TSS
        0,
        _descriptor(0, flat, 0xFB, 0xC),  # 0x48 code at CPL 3
        _descriptor(0, flat, 0xF3, 0xC),  # 0x50 data at CPL 3
        _descriptor(0, flat, 0xFB, 0xA),  # 0x58 64-bit code at CPL 3
    ]
    for _ in range(52):
        base = draw.choice((0, CODE, DATA, tss, TABLES, 0xFFFF_0000, draw.getrandbits(32)))
        limit = draw.choice((0, 0xFFF, 0xFFFF, 0xFFFFF, draw.getrandbits(20)))
        entries.append(_descriptor(base, limit, draw.getrandbits(8), draw.getrandbits(4)))
    return b"".join(struct.pack("<Q", entry) for entry in entries)


def _gates(draw: random.Random, *, wide: bool, wild: bool) -> bytes:
    """An IDT whose gates all go on with the next piece, but for a few wild ones."""
    table = b""
    for vector in range(256):
        handler, selector = (_RESUME64, 0x18) if wide else (_RESUME32, 0x08)
        kind = draw.choice((0x8E, 0xEE, 0xEF, 0x8F))
        if wild and vector >= 32 and draw.random() < 0.2:
            kind, selector = draw.getrandbits(8), draw.choice((0, 0x10, 0x38, 0x60, 0xFFFF))
        low = handler & 0xFFFF | selector << 16 | kind << 40 | (handler >> 16 & 0xFFFF) << 48
        table += struct.pack("<Q", low) + (struct.pack("<Q", handler >> 32) if wide else b"")
    return table


def _tss(draw: random.Random, mode: Mode) -> bytes:
    tss = bytearray(0x2100)
    if mode is Mode.LONG:
        for at in range(4, 0x5C, 8):
            struct.pack_into("<Q", tss, at, STACK)
    else:
        struct.pack_into("<III", tss, 4, STACK, 0x10, STACK)
    struct.pack_into("<H", tss, 0x66, draw.choice((0x68, 0x68, 0xFFFF, 0)))
    if draw.random() < 0.5:
        tss[0x68:] = draw.randbytes(0x2100 - 0x68)
    return bytes(tss)


def guest_image(
    draw: random.Random,
    mode: Mode,
    pieces: list[bytes],
    *,
    cr0: int = 0,
    cr3: int = 0,
    cr4: int = 0,
    efer: int = 0,
    tables: bytes = b"",
    user: float = 0.0,
) -> bytes:
    """An image that executes ``pieces`` in turn, in ``mode``; of them the part ``user`` at CPL 3.

    ``tables`` are the pages from ``TABLES`` on. Each piece has at most ``PIECE_BYTES``.
    """
    image = bytearray(DATA - LOAD)
    image[:_PAGE] = _beginning()
    struct.pack_into(
        "<8I", image, _PAGE, mode, cr4, cr3, efer, cr0 | 1, len(pieces), 0,
        draw.choice((2, 0x202, 0x3002, 0x3202)),
    )  # fmt: skip
    rings = bytes(draw.random() < user for _ in pieces)
    tss = _tss(draw, mode)
    parts = {
        _PAGE + 0x100: rings,
        2 * _PAGE: _gdt(draw),
        3 * _PAGE: _gates(draw, wide=False, wild=mode is not Mode.LONG),
        4 * _PAGE: _gates(draw, wide=True, wild=mode is Mode.LONG),
        5 * _PAGE: struct.pack("<HH", _RESUME16, 0) * 256,
        6 * _PAGE: tss,
        TABLES - LOAD: tables,
    }
    for number, piece in enumerate(pieces):
        assert len(piece) <= PIECE_BYTES, len(piece)
        parts[CODE - LOAD + number * PIECE_BYTES] = piece
    for at, content in parts.items():
        image[at : at + len(content)] = content
    return bytes(image)
