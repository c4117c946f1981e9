# SPDX-License-Identifier: Apache-2.0
"""Guests that hammer devices: every port, the local APIC's page, the balloon's protocol."""

from __future__ import annotations

import random
import struct

from memvirt.platform.balloon import Command
from memvirt.platform.ports import BACKDOOR_MAGIC, BALLOON_MAGIC, PORT_BACKDOOR, PORT_BALLOON

from .guest_image import DATA, MEMORY, PIECE_BYTES, PIECES
from .mutations import WIDEST

_PORTS = (
    0x20,
    0x21,
    0xA0,
    0xA1,
    0x40,
    0x41,
    0x42,
    0x43,
    0x60,
    0x61,
    0x64,
    0x70,
    0x71,
    0x80,
    0x92,
    *range(0x3F8, 0x400),
    0x3D4,
    0x3D5,
    0x3DA,
    0x4D0,
    0x4D1,
    0x600,
    0x604,
    0xCF8,
    0xCF9,
    0xCFC,
    0x510,
    0x511,
    0x514,
    PORT_BACKDOOR,
    PORT_BALLOON,
)
_ENDS = (0xF4, 0x64, 0x92, 0x604, 0xCF9)  # ports that can end a guest: rarer, so that it goes on
_END = b"\x0f\x0b"


def _load(register: int, value: int) -> bytes:
    return bytes((0xB8 + register,)) + struct.pack("<I", value & 0xFFFF_FFFF)


def _port_access(draw: random.Random) -> bytes:
    port = draw.choice(_PORTS) if draw.random() < 0.8 else draw.getrandbits(16)
    if port in _ENDS and draw.random() < 0.9:
        port = 0x80
    size = draw.choice(
        (
            b"\xee",
            b"\xec",
            b"\xee",
            b"\xec",
            b"\x66\xef",
            b"\x66\xed",
            b"\xef",
            b"\xed",
            b"\x6c",
            b"\x6e",
            b"\xf3\x6d",
            b"\xf3\x6e",
        )
    )
    magic = draw.choice((BACKDOOR_MAGIC, BALLOON_MAGIC, draw.getrandbits(32), draw.getrandbits(8)))
    operands = _load(0, magic) + _load(2, port)
    if size[-1] in (0x6C, 0x6D, 0x6E):
        operands += _load(7, DATA) + _load(6, DATA) + _load(1, draw.choice((1, 3, 5000)))
    if draw.random() < 0.2 and port not in _ENDS:
        times = draw.choice((3, 300, 30_000))
        body = size + b"\x04\x03"  # add $3, %al
        return operands + _load(1, times) + body + bytes((0xE2, -len(body) - 2 & 255))
    return operands + size + draw.choice((b"", b"", b"\xfb\x90\xfa", b"\xfb"))


def _apic_access(draw: random.Random) -> bytes:
    offset = draw.choice((draw.randrange(0x40) * 16, draw.randrange(0x1000)))
    value = draw.choice(
        (draw.getrandbits(32), draw.choice(WIDEST), 0x1FF, 0x20040, 0x4400, 0xC4500)
    )
    at = 0xFEE0_0000 + offset
    access = draw.choice(
        (
            b"\x89\x03",
            b"\x89\x03",
            b"\x8b\x03",
            b"\x88\x03",
            b"\x66\x89\x03",
            b"\x0f\x11\x03",
            b"\x87\x03",
            b"\xf0\x01\x03",
            b"\x66\x8b\x03",
        )
    )
    return (
        _load(0, value) + _load(3, at) + access + draw.choice((b"", b"", b"\xfb\x90\xfa", b"\xfb"))
    )


def _balloon_call(draw: random.Random) -> bytes:
    """A command as the driver gives it, or a lie."""
    pages = MEMORY >> 12
    command = draw.choice((*Command, *Command, 5, 11, 0xFFFF, draw.getrandbits(32)))
    if draw.random() < 0.25:
        command = Command.START
    page = draw.choice((DATA >> 12, draw.randrange(pages), pages - 1, pages, 0, 0xFFFF_FFFF, 512))
    count = draw.choice(
        (0, 1, 2, 511, 512, 513, 0xFFFF_FFFF, 0x3E, 0x16, 0xFFFF, draw.getrandbits(32))
    )
    arguments = (count, page) if command == Command.START or draw.random() < 0.2 else (page, count)
    call = _load(0, BALLOON_MAGIC if draw.random() < 0.95 else draw.getrandbits(32))
    call += _load(1, command) + _load(2, PORT_BALLOON)
    return call + _load(3, arguments[0]) + _load(6, arguments[1]) + b"\xed"


def _batch_entry(draw: random.Random) -> bytes:
    """Write to a page that may be a batch, or in the balloon: a page number, a status, nonsense."""
    pages = MEMORY >> 12
    ppn = draw.choice((draw.randrange(pages), DATA >> 12, 512, pages, 0xF_FFFF))
    at = draw.choice((DATA, DATA + draw.randrange(256) * 4096)) + draw.randrange(16) * 8
    return _load(0, ppn << 12 | draw.choice((0, 0, 7, 0xFFF))) + _load(3, at) + b"\x89\x03"


def _pieces(draw: random.Random, *choices: tuple[float, object]) -> list[bytes]:
    pieces = []
    for _ in range(PIECES):
        code = b""
        while True:
            makers = [maker for _, maker in choices]
            maker = draw.choices(makers, [weight for weight, _ in choices])[0]
            instruction = maker(draw)  # type: ignore[operator]
            if len(code) + len(instruction) > PIECE_BYTES - len(_END):
                break
            code += instruction
        pieces.append(code + _END)
    return pieces


def port_storm(draw: random.Random) -> list[bytes]:
    return _pieces(draw, (5, _port_access), (1, _apic_access))


def apic_storm(draw: random.Random) -> list[bytes]:
    return _pieces(draw, (6, _apic_access), (1, _port_access))


def balloon_abuse(draw: random.Random) -> list[bytes]:
    return _pieces(draw, (4, _balloon_call), (2, _batch_entry))
