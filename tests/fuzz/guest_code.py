# SPDX-License-Identifier: Apache-2.0
"""Random machine code in 16, 32 and 64 bits: every opcode, with operands that lead somewhere.

No assembler: one would refuse half of it. A piece ends with UD2, so that the guest goes on with the
next one.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from .guest_image import (
    CODE,
    DATA,
    MEMORY,
    PIECE_BYTES,
    PIECES,
    STACK,
    TABLE_PAGES,
    TABLES,
    Mode,
)
from .mutations import WIDEST
from .page_tables import strange_entry

_END = b"\x0f\x0b"
_MSRS = (
    0x10, 0x1B, 0x8B, 0xFE, 0x174, 0x175, 0x176, 0x179, 0x186, 0x1A0, 0x1D9, 0x200, 0x277, 0x2FF,
    0x345, 0x3B, 0x6E0, 0x800, 0x808, 0x830, 0x83F, 0xC000_0080, 0xC000_0081, 0xC000_0082,
    0xC000_0083, 0xC000_0084, 0xC000_0100, 0xC000_0101, 0xC000_0102, 0xC000_0103, 0x4000_0000,
)  # fmt: skip
_ONE_BYTE_WITH_MODRM = (
    *range(0x00, 0x04), *range(0x08, 0x0C), *range(0x10, 0x14), *range(0x18, 0x1C),
    *range(0x20, 0x24), *range(0x28, 0x2C), *range(0x30, 0x34), *range(0x38, 0x3C),
    *range(0x84, 0x90), 0x62, 0x63, 0xC4, 0xC5, 0xD0, 0xD1, 0xD2, 0xD3, *range(0xD8, 0xE0),
    0xFE, 0xFF, 0xF6, 0xF7,
)  # fmt: skip
_PLAIN = (
    0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F, *range(0x40, 0x62), 0x6C,
    0x6D, 0x6E, 0x6F, *range(0x90, 0x9A), 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, *range(0xA4, 0xA8),
    *range(0xAA, 0xB0), 0xC3, 0xC9, 0xCB, 0xCC, 0xCE, 0xCF, 0xD6, 0xD7, 0xEC, 0xED, 0xEE, 0xEF,
    0xF1, 0xF5, *range(0xF8, 0xFE),
)  # fmt: skip
_SYSTEM = (
    b"\x0f\x05", b"\x0f\x06", b"\x0f\x07", b"\x0f\x08", b"\x0f\x09", b"\x0f\x30", b"\x0f\x31",
    b"\x0f\x32", b"\x0f\x33", b"\x0f\x34", b"\x0f\x35", b"\x0f\x77", b"\x0f\xa0", b"\x0f\xa1",
    b"\x0f\xa2", b"\x0f\xa8", b"\x0f\xa9", b"\x0f\xaa", b"\x0f\x01\xc1", b"\x0f\x01\xc8",
    b"\x0f\x01\xc9", b"\x0f\x01\xca", b"\x0f\x01\xcb", b"\x0f\x01\xd0", b"\x0f\x01\xd1",
    b"\x0f\x01\xd8", b"\x0f\x01\xdf", b"\x0f\x01\xf8", b"\x0f\x01\xf9", b"\xf3\x90",
    b"\x0f\xae\xf0",
    b"\x0f\xae\xe8", b"\xf3\x0f\xae\xc0", b"\xf3\x0f\xae\xd8",
)  # fmt: skip


class _Writer:
    """Draws instructions for one mode."""

    def __init__(self, draw: random.Random, mode: Mode) -> None:
        self.draw = draw
        self.mode = mode
        self.bits = mode.bits

    # Operands ----------------------------------------------------------------------------------

    def address(self) -> int:
        """Where something is, or where something should not be."""
        draw = self.draw
        if self.bits == 16:
            return draw.choice((0, 0x100, 0x7F10, 0xFFE, 0xFFFF, draw.getrandbits(16)))
        base = draw.choice((
            DATA, DATA, TABLES + draw.randrange(TABLE_PAGES) * 4096,
            CODE + draw.randrange(PIECES) * PIECE_BYTES, STACK - 4096, MEMORY - 4096, MEMORY,
            0xB8000, 0xFEE0_0000, 0xFEE0_0000 + draw.randrange(0x40) * 16, 0xFEC0_0000, 0,
            0xFFFF_F000, draw.getrandbits(32),
        ))  # fmt: skip
        if self.bits == 64 and draw.random() < 0.15:
            base = draw.choice(WIDEST)
        return base + draw.choice((0, 0, 0, 8, 0xFF8, 0xFFC, 0xFFD, 0xFFF, draw.randrange(4096)))

    def some_register(self) -> bytes:
        return self.load(self.draw.randrange(8))

    def value(self) -> int:
        draw = self.draw
        return draw.choice((draw.choice(WIDEST), self.address(), draw.getrandbits(32)))

    def load(self, register: int, value: int | None = None) -> bytes:
        """Set a register (0 to 7)."""
        value = self.value() if value is None else value
        if self.bits == 64:
            return bytes((0x48, 0xB8 + register)) + struct.pack("<Q", value & (1 << 64) - 1)
        prefix = b"\x66" if self.bits == 16 else b""
        return prefix + bytes((0xB8 + register,)) + struct.pack("<I", value & 0xFFFF_FFFF)

    def operand(self, register: int | None = None) -> bytes:
        """ModRM and what follows it: a register, memory at a number, or by registers."""
        draw = self.draw
        field = (draw.randrange(8) if register is None else register) << 3
        choice = draw.random()
        if choice < 0.25:
            return bytes((0xC0 | field | draw.randrange(8),))
        if choice < 0.6:
            if self.bits == 16:
                return bytes((field | 6,)) + struct.pack("<H", self.address() & 0xFFFF)
            at = struct.pack("<I", self.address() & 0xFFFF_FFFF)
            return bytes((field | 4, 0x25)) + at if self.bits == 64 else bytes((field | 5,)) + at
        rm = draw.choice((0, 1, 2, 3, 6, 7))
        if choice < 0.8 and not (self.bits == 16 and rm == 6):
            return bytes((field | rm,))
        return bytes((0x40 | field | rm, draw.randrange(256)))

    def immediate(self, size: int | None = None) -> bytes:
        size = size or (2 if self.bits == 16 else 4)
        return (self.value() & (1 << 8 * size) - 1).to_bytes(size, "little")

    # Instructions ------------------------------------------------------------------------------

    def noise(self) -> bytes:
        return self.draw.randbytes(self.draw.randrange(1, 16))

    def general(self) -> bytes:
        draw = self.draw
        prefixes = b"".join(
            bytes((draw.choice((0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x26, 0x2E, 0x36, 0x64, 0x65)),))
            for _ in range(draw.choice((0, 0, 0, 0, 1, 1, 2)))
        )
        if self.bits == 64 and draw.random() < 0.5:
            prefixes += bytes((0x40 | draw.randrange(16),))
        choice = draw.randrange(6)
        if choice == 0:
            return prefixes + bytes((draw.choice(_ONE_BYTE_WITH_MODRM),)) + self.operand()
        if choice == 1:
            return prefixes + bytes((draw.choice(_PLAIN),))
        if choice == 2:
            opcode = draw.choice((0x80, 0x81, 0x83, 0xC0, 0xC1, 0xC6, 0xC7, 0x69, 0x6B))
            wide = opcode in (0x81, 0xC7, 0x69)
            return (
                prefixes + bytes((opcode,)) + self.operand() + self.immediate(None if wide else 1)
            )
        if choice == 3:
            return prefixes + b"\x0f" + bytes((draw.randrange(256),)) + self.operand()
        if choice == 4:
            page = draw.choice((b"\x0f\x38", b"\x0f\x3a"))
            tail = self.immediate(1) if page[1] == 0x3A else b""
            return prefixes + page + bytes((draw.randrange(256),)) + self.operand() + tail
        opcode = draw.choice((0x04, 0x05, 0x0C, 0x24, 0x2C, 0x3C, 0x68, 0x6A, 0xA8, 0xC8, 0xD4))
        return prefixes + bytes((opcode,)) + self.immediate()

    def vector(self) -> bytes:
        """VEX-encoded: the engine has some, and must refuse the others."""
        draw = self.draw
        tail = bytes((draw.randrange(256),)) + self.operand() + self.immediate(1)
        if draw.random() < 0.5:
            return bytes((0xC5, draw.randrange(256))) + tail
        return bytes((0xC4, draw.randrange(256), draw.randrange(256))) + tail

    def control(self) -> bytes:
        """CR and DR."""
        draw = self.draw
        if draw.random() < 0.3:
            direction, number = draw.choice((0x21, 0x23)), draw.randrange(8)
            return self.load(0) + bytes((0x0F, direction, 0xC0 | number << 3))
        number = draw.choice((0, 0, 2, 3, 3, 4, 4, 8 if self.bits == 64 else 3))
        prefix = b"\x44" if number == 8 else b""
        read = prefix + bytes((0x0F, 0x20, 0xC0 | (number & 7) << 3))
        write = prefix + bytes((0x0F, 0x22, 0xC0 | (number & 7) << 3))
        if draw.random() < 0.5:  # one bit of it
            bit = draw.choice((0, 1, 2, 3, 4, 5, 7, 9, 12, 16, 18, 20, 21, 29, 30, 31))
            flip = b"\x0f\xba\xf8" + bytes((bit,))  # btc $bit, %eax
            return read + flip + write
        value = TABLES + draw.randrange(TABLE_PAGES) * 4096 if number == 3 else self.value()
        return self.load(0, value) + write

    def model_specific(self) -> bytes:
        draw = self.draw
        number = draw.choice(_MSRS) if draw.random() < 0.8 else draw.getrandbits(32)
        access = draw.choice((b"\x0f\x30", b"\x0f\x32", b"\x0f\x32\x0f\x30"))
        return self.load(1, number) + self.load(0) + self.load(2) + access

    def table_write(self) -> bytes:
        """Change an entry that may be in use, and now and then say so."""
        draw = self.draw
        if self.bits == 16:
            return self.general()
        at = TABLES + draw.randrange(TABLE_PAGES) * 4096 + draw.choice((0, 8, draw.randrange(4096)))
        entry = strange_entry(draw, 8 if self.bits == 64 else 4)
        store = b"\x48\x89\x03" if self.bits == 64 else b"\x89\x03"
        after = draw.choice((b"", b"\x0f\x01\x3b", b"\x0f\x20\xd8\x0f\x22\xd8"))
        return self.load(3, at & ~7) + self.load(0, entry) + store + after

    def system(self) -> bytes:
        return self.draw.choice(_SYSTEM)

    def descriptor(self) -> bytes:
        """Selectors, descriptor tables, interrupts and far returns."""
        draw = self.draw
        choice = draw.randrange(6)
        if choice == 0:
            group = draw.choice((b"\x0f\x00", b"\x0f\x01", b"\x0f\x02", b"\x0f\x03"))
            return group + self.operand()
        selector = draw.choice((0, 8, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x4B, 0x53, 0x5B, 0x67,
                                draw.randrange(0x60, 0x200), 0xFFFF))  # fmt: skip
        if choice == 1:
            return self.load(0, selector) + bytes((0x8E, 0xC0 | draw.randrange(8) << 3))
        if choice == 2:
            return self.load(0, selector) + b"\x0f\x00" + bytes((draw.choice((0xD0, 0xD8)),))
        if choice == 3:
            return bytes((0xCD, draw.choice((0, 1, 3, 8, 13, 14, 0x10, 0x80, draw.randrange(256)))))
        pushes = b"".join(self.load(0) + b"\x50" for _ in range(draw.randrange(3)))
        wide = b"\x48" if self.bits == 64 else b""
        return pushes + self.load(0, selector) + b"\x50" + wide + draw.choice((b"\xcb", b"\xcf"))

    def state_area(self) -> bytes:
        """FXSAVE, XSAVE, LDMXCSR and the like; CMPXCHG8B and 16B."""
        wide = b"\x48" if self.bits == 64 and self.draw.random() < 0.5 else b""
        group = self.draw.choice((b"\x0f\xae", b"\x0f\xc7"))
        return self.draw.choice((b"", b"\xf0")) + wide + group + self.operand()

    def jump(self) -> bytes:
        draw = self.draw
        choice = draw.randrange(4)
        if choice == 0:
            return bytes((draw.choice((*range(0x70, 0x80), 0xE0, 0xE1, 0xE2, 0xE3, 0xEB)),
                          draw.choice((0xFE, 0xF0, 2, 0x10, draw.randrange(256)))))  # fmt: skip
        if choice == 1:
            return self.load(0, self.address()) + draw.choice((b"\xff\xe0", b"\xff\xd0"))
        if choice == 2:
            return bytes((draw.choice((0xE8, 0xE9)),)) + self.immediate()
        return self.load(4, self.address())  # the stack pointer

    def loop(self) -> bytes:
        """Few instructions many times: self-modification, string operations, polling."""
        draw = self.draw
        times = draw.choice((100, 10_000, 1_000_000, 0xFFFF_FFFF))
        if draw.random() < 0.3:
            setup = (
                self.load(1, times) + self.load(7, self.address()) + self.load(6, self.address())
            )
            return setup + draw.choice(
                (b"\xf3\xaa", b"\xf3\xab", b"\xf3\xa4", b"\xf2\xae", b"\xf3\x6c")
            )
        body = draw.choice((
            b"\x88\x03", b"\xfe\x03", b"\x0f\x31", b"\x0f\xa2", b"\x0f\x01\x3b", b"\xe4\x40",
            b"\x0f\x20\xd8\x0f\x22\xd8", b"\x9c\x9d", b"\xcc", b"\x86\x03", self.general(),
        ))[:40]  # fmt: skip
        target = draw.choice((DATA, TABLES, self.address()))
        return (
            self.load(1, times) + self.load(3, target) + body + bytes((0xE2, -len(body) - 2 & 255))
        )


_Chooser = Callable[[_Writer], bytes]
_CHOICES: tuple[tuple[_Chooser, float], ...] = (
    (_Writer.noise, 1),
    (_Writer.general, 6),
    (_Writer.vector, 1),
    (_Writer.control, 2),
    (_Writer.model_specific, 1),
    (_Writer.table_write, 3),
    (_Writer.system, 2),
    (_Writer.descriptor, 2),
    (_Writer.state_area, 1),
    (_Writer.jump, 1),
    (_Writer.loop, 0.5),
    (_Writer.some_register, 3),
)


def random_piece(draw: random.Random, mode: Mode) -> bytes:
    """One piece of code: some instructions, then UD2."""
    writer = _Writer(draw, mode)
    choices = [choice for choice, _ in _CHOICES]
    weights = [weight for _, weight in _CHOICES]
    code = b""
    for _ in range(draw.choice((2, 5, 12, 30))):
        instruction = draw.choices(choices, weights)[0](writer)
        if len(code) + len(instruction) > PIECE_BYTES - len(_END):
            break
        code += instruction
    return code + _END


def random_code(draw: random.Random, mode: Mode) -> list[bytes]:
    return [random_piece(draw, mode) for _ in range(draw.choice((8, 40, PIECES)))]
