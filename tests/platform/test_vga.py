# SPDX-License-Identifier: Apache-2.0
"""The VGA's registers, and the screen that they and its memory make."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.address import PAGE_BYTES, PhysicalPageNumber
from memvirt.platform.pc import new_pc
from memvirt.platform.ports import io_read, io_write
from memvirt.platform.text_screen import TextScreen, read_screen, text_mode

_WINDOW = 0xB8
_PAGES = 0x100


def make() -> Any:
    return new_pc()[0]


def crtc(pc: Any, index: int, value: int) -> None:
    io_write(pc, 0x3D4, 2, index | value << 8, 0)  # a word: index, then data, as kernels do


def screen_of(pc: Any, memory: bytes, pages: int = _PAGES) -> TextScreen:
    """The screen with ``memory`` at gPA 0xb8000, and nothing else."""

    def read_page(ppn: PhysicalPageNumber) -> bytes:
        begin = (ppn - _WINDOW) * PAGE_BYTES
        return memory[begin : begin + PAGE_BYTES].ljust(PAGE_BYTES, b"\0")

    mode = text_mode(pc.vga)
    assert mode is not None
    return read_screen(mode, read_page, pages)


def cells(text: str, attribute: int = 7) -> bytes:
    return b"".join(bytes((ord(character), attribute)) for character in text)


def test_it_begins_as_the_bios_leaves_it() -> None:
    pc = make()
    screen = screen_of(pc, b"")
    assert (screen.columns, screen.rows, screen.cursor, screen.blink) == (80, 25, (0, 0), True)
    assert screen.text() == ""
    assert io_read(pc, 0x3CC, 1, 0) & 1  # colour: the CRTC is at 0x3d4
    assert pc.unknown_reads == 0


def test_the_cursor_is_where_it_was_put_and_reads_back() -> None:
    pc = make()
    crtc(pc, 0x0E, 0x01)
    crtc(pc, 0x0F, 0x42)
    io_write(pc, 0x3D4, 1, 0x0F, 0)
    assert io_read(pc, 0x3D5, 1, 0) == 0x42
    assert screen_of(pc, b"").cursor == divmod(0x142, 80)
    crtc(pc, 0x0A, 0x20)
    assert screen_of(pc, b"").cursor is None


def test_scrolling_by_the_start_address_moves_text_and_cursor() -> None:
    pc = make()
    memory = cells("first".ljust(80)) + cells("second".ljust(80))
    crtc(pc, 0x0D, 80)
    crtc(pc, 0x0F, 80 + 6)
    screen = screen_of(pc, memory)
    assert screen.text() == "second"
    assert screen.cursor == (0, 6)


def test_the_window_wraps_around() -> None:
    pc = make()
    memory = cells("begin").ljust(0x8000 - 8, b"\0") + cells("wrap")
    start = 0x4000 - 4
    crtc(pc, 0x0C, start >> 8)
    crtc(pc, 0x0D, start & 0xFF)
    assert screen_of(pc, memory).line(0).startswith("wrapbegin")


def test_fifty_rows_and_other_bases() -> None:
    pc = make()
    crtc(pc, 0x09, 0x47)  # characters of 8 lines
    assert screen_of(pc, b"").rows == 50
    io_write(pc, 0x3CE, 2, 6 | 0x0A << 8, 0)
    mode = text_mode(pc.vga)
    assert mode is not None
    assert mode.base == 0xB0000
    io_write(pc, 0x3CE, 2, 6 | 0x05 << 8, 0)  # graphics
    assert text_mode(pc.vga) is None


def test_registers_0_to_7_are_protected_until_the_guest_unlocks_them() -> None:
    pc = make()
    crtc(pc, 0x01, 39)
    assert screen_of(pc, b"").columns == 80
    crtc(pc, 0x11, 0x0E)
    crtc(pc, 0x01, 39)
    assert screen_of(pc, b"").columns == 40


def test_the_attribute_controller_takes_index_and_data_in_turn() -> None:
    pc = make()
    for value in (0x30, 0x04):  # blinking off: sixteen backgrounds
        io_write(pc, 0x3C0, 1, value, 0)
    assert not screen_of(pc, b"").blink
    io_write(pc, 0x3C0, 1, 0x30, 0)
    io_read(pc, 0x3DA, 1, 0)  # what comes next is an index again
    io_write(pc, 0x3C0, 1, 0x30, 0)
    io_write(pc, 0x3C0, 1, 0x0C, 0)
    assert screen_of(pc, b"").blink


def test_a_wait_for_the_vertical_retrace_ends() -> None:
    pc = make()
    frame = 449 * 31_778
    seen = {io_read(pc, 0x3DA, 1, now) & 8 for now in range(0, frame, 31_778)}
    assert seen == {0, 8}


def test_every_byte_is_a_printable_character() -> None:
    memory = bytes(byte for code in range(256) for byte in (code, 7))
    screen = screen_of(make(), memory)
    text = "".join(screen.line(row) for row in range(4))[:256]
    assert len(text) == 256
    assert text.isprintable()
    assert len(set(text)) == 254  # three of them are blank: NUL, space, no-break space
    assert text[65:91] == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert text[0xDB] == "█"


def test_where_no_memory_is_the_screen_is_blank() -> None:
    assert screen_of(make(), cells("beyond"), pages=0x80).text() == ""


def test_rows_beyond_the_screen_are_refused() -> None:
    screen = screen_of(make(), b"")
    for row in (-1, 25):
        with pytest.raises(IndexError):
            screen.line(row)
        with pytest.raises(IndexError):
            screen.attributes(row)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0x3C0, 0x3DF), st.integers(0, 255)), max_size=60))
def test_any_registers_make_a_screen_or_none(writes: list[tuple[int, int]]) -> None:
    pc = make()
    for port, value in writes:
        io_write(pc, port, 1, value, 0)
        assert 0 <= io_read(pc, port, 1, 12345) <= 255
    mode = text_mode(pc.vga)
    if mode is None:
        return
    screen = read_screen(mode, lambda ppn: struct.pack("<I", ppn) * 1024, _PAGES)
    assert 1 <= screen.columns <= 256
    assert 1 <= screen.rows <= 1024
    assert 1 <= mode.pitch <= 510
    assert len(screen.cells) == 2 * screen.rows * screen.columns
    assert all(line.isprintable() for line in screen.lines())
