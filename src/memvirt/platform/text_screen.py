# SPDX-License-Identifier: Apache-2.0
"""What a VGA in text mode shows: its registers and its memory, as rows of characters and colours.

The characters are code page 437, whose 256 glyphs are all printable here: what a guest prints can
never become a control sequence of the terminal it is shown on.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memvirt.address import (
    PAGE_BYTES,
    GuestPhysicalAddress,
    PhysicalPageNumber,
    physical_page_number,
)

from .vga import (
    ATTRIBUTE_MODE,
    CRTC_CELL_HEIGHT,
    CRTC_COLUMNS,
    CRTC_CURSOR_END,
    CRTC_CURSOR_HIGH,
    CRTC_CURSOR_LOW,
    CRTC_CURSOR_START,
    CRTC_LINES,
    CRTC_OFFSET,
    CRTC_OVERFLOW,
    CRTC_START_HIGH,
    CRTC_START_LOW,
    GRAPHICS_MISCELLANEOUS,
    VgaState,
)

__all__ = ["TextMode", "TextScreen", "read_screen", "text_mode"]

WINDOW_BYTES = 0x8000
_BASES = (0xA0000, 0xA0000, 0xB0000, 0xB8000)  # by the memory map of GRAPHICS_MISCELLANEOUS
_GRAPHICS_MODE = 0x01
_CURSOR_OFF = 0x20
_BLINK = 0x08

# The glyphs where Python's codec gives control characters, and its no-break space.
_LOW_GLYPHS = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
_GLYPHS = dict(enumerate(_LOW_GLYPHS)) | {0x7F: "⌂", 0xA0: " "}


@dataclass(frozen=True, slots=True)
class TextMode:
    """Which cells of which memory are shown, and where the cursor stands.

    ``start`` and ``cursor`` are counted in cells (of two bytes) from ``base``, the window's gPA;
    ``pitch`` is the number of cells from one row to the next. ``cursor`` is None if it is off.
    """

    base: GuestPhysicalAddress
    columns: int
    rows: int
    pitch: int
    start: int
    cursor: int | None
    blink: bool


@dataclass(frozen=True, slots=True)
class TextScreen:
    """A text screen at one moment.

    ``cells`` are character and attribute of every cell, row by row, as they lay in memory.
    ``cursor`` is (row, column) from 0, None if it is off or not on the screen. With ``blink`` an
    attribute's bit 7 is blinking, else it is a bright background.
    """

    columns: int
    rows: int
    cells: bytes
    cursor: tuple[int, int] | None
    blink: bool

    def __repr__(self) -> str:
        where = "no cursor" if self.cursor is None else f"cursor at {self.cursor}"
        return f"<TextScreen: {self.columns} x {self.rows}, {where}>"

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        """The text, white on black, for notebooks."""
        style = "background:#000;color:#aaa;display:inline-block;padding:0.5em"
        return f'<pre style="{style}">{html.escape(self.text())}</pre>'

    def line(self, row: int) -> str:
        """The characters of one row, ``columns`` of them. Raises IndexError beyond the screen."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of a screen of {self.rows} rows")
        begin = 2 * row * self.columns
        characters = self.cells[begin : begin + 2 * self.columns : 2]
        return characters.decode("cp437").translate(_GLYPHS)

    def attributes(self, row: int) -> bytes:
        """The attributes of one row: foreground in bits 0 to 3, background 4 to 6, then bit 7.

        Raises IndexError beyond the screen.
        """
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of a screen of {self.rows} rows")
        begin = 2 * row * self.columns
        return self.cells[begin + 1 : begin + 2 * self.columns : 2]

    def lines(self) -> list[str]:
        """All rows, without the blanks at their ends."""
        return [self.line(row).rstrip() for row in range(self.rows)]

    def text(self) -> str:
        """The rows down to the last that is not blank, joined by line ends."""
        return "\n".join(self.lines()).rstrip("\n")


def text_mode(vga: VgaState) -> TextMode | None:
    """The text mode that the registers describe; None in a graphics mode."""
    miscellaneous = int(vga.graphics[GRAPHICS_MISCELLANEOUS])
    if miscellaneous & _GRAPHICS_MODE:
        return None
    crtc = [int(value) for value in vga.crtc]
    overflow, height = crtc[CRTC_OVERFLOW], crtc[CRTC_CELL_HEIGHT]
    lines = 1 + (crtc[CRTC_LINES] | (overflow >> 1 & 1) << 8 | (overflow >> 6 & 1) << 9)
    if height & 0x80:
        lines //= 2
    columns = crtc[CRTC_COLUMNS] + 1
    first, last = crtc[CRTC_CURSOR_START], crtc[CRTC_CURSOR_END]
    is_on = not first & _CURSOR_OFF and first & 0x1F <= last & 0x1F
    return TextMode(
        base=GuestPhysicalAddress(_BASES[miscellaneous >> 2 & 3]),
        columns=columns,
        rows=max(lines // ((height & 0x1F) + 1), 1),
        pitch=2 * crtc[CRTC_OFFSET] or columns,
        start=crtc[CRTC_START_HIGH] << 8 | crtc[CRTC_START_LOW],
        cursor=crtc[CRTC_CURSOR_HIGH] << 8 | crtc[CRTC_CURSOR_LOW] if is_on else None,
        blink=bool(int(vga.attribute[ATTRIBUTE_MODE]) & _BLINK),
    )


def read_screen(
    mode: TextMode, read_page: Callable[[PhysicalPageNumber], bytes], pages: int
) -> TextScreen:
    """The screen of ``mode``; ``read_page`` gives the guest's pages, of which there are ``pages``.

    Only pages that are shown are read. Addresses wrap around at the end of the window of 32 KiB;
    where no memory is, cells are blank.
    """
    window = np.zeros(WINDOW_BYTES // 2, np.uint16)
    rows = np.arange(mode.rows)[:, None] * mode.pitch
    shown = (mode.start + rows + np.arange(mode.columns)) % window.size
    cells_a_page = PAGE_BYTES // 2
    first = physical_page_number(mode.base)
    for number in np.unique(shown // cells_a_page).tolist():
        ppn = PhysicalPageNumber(first + number)
        if ppn < pages:
            begin = number * cells_a_page
            window[begin : begin + cells_a_page] = np.frombuffer(read_page(ppn), np.uint16)
    cursor = None
    if mode.cursor is not None:
        row, column = divmod((mode.cursor - mode.start) % window.size, mode.pitch)
        if row < mode.rows and column < mode.columns:
            cursor = row, column
    return TextScreen(mode.columns, mode.rows, window[shown].tobytes(), cursor, mode.blink)
