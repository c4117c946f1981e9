# SPDX-License-Identifier: Apache-2.0
"""The guest's text screen on the user's terminal: drawn as it runs, and as text at its end."""

from __future__ import annotations

import sys
import time
from itertools import groupby
from types import TracebackType

from rich.color import Color
from rich.console import Console, Group
from rich.live import Live
from rich.style import Style
from rich.text import Text

from memvirt.platform.text_screen import TextScreen
from memvirt.vm.virtual_machine import VirtualMachine

REDRAW_SECONDS = 0.05
# The sixteen colours of the BIOS's palette, in the order of the attribute's bits: blue is bit 0.
_PALETTE = (
    "#000000", "#0000aa", "#00aa00", "#00aaaa", "#aa0000", "#aa00aa", "#aa5500", "#aaaaaa",
    "#555555", "#5555ff", "#55ff55", "#55ffff", "#ff5555", "#ff55ff", "#ffff55", "#ffffff",
)  # fmt: skip
_COLORS = tuple(Color.parse(name) for name in _PALETTE)
GRAPHICS = "the guest has left text mode: there is nothing to show"


def style_of(attribute: int, *, blink: bool, cursor: bool = False) -> Style:
    """How a terminal shows a cell of this attribute; the cursor's cell is reversed."""
    background = attribute >> 4 & 0x07 if blink else attribute >> 4
    return Style(
        color=_COLORS[attribute & 0x0F],
        bgcolor=_COLORS[background],
        blink=blink and bool(attribute & 0x80),
        reverse=cursor,
    )


def styled(screen: TextScreen) -> Text:
    """``screen`` for rich, with its colours."""
    text = Text(no_wrap=True, overflow="crop", end="")
    for row in range(screen.rows):
        if row:
            text.append("\n")
        characters, attributes = screen.line(row), screen.attributes(row)
        cells = [
            (attributes[column], (row, column) == screen.cursor) for column in range(screen.columns)
        ]
        column = 0
        for (attribute, cursor), run in groupby(cells):
            end = column + len(list(run))
            style = style_of(attribute, blink=screen.blink, cursor=cursor)
            text.append(characters[column:end], style)
            column = end
    return text


def as_text(screen: TextScreen | None) -> str:
    """The screen as lines of text, below a line that says what it is."""
    if screen is None:
        return f"--- display: {GRAPHICS}"
    where = ""
    if screen.cursor is not None:
        row, column = screen.cursor
        where = f", cursor in row {row + 1}, column {column + 1}"
    return "\n".join([f"--- display, {screen.columns} x {screen.rows}{where}", *_shown(screen)])


def _shown(screen: TextScreen) -> list[str]:
    text = screen.text()
    return text.split("\n") if text else []


class TerminalDisplay:
    """Draws a VM's screen on a terminal, alone on it, while the block runs; else does nothing."""

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm
        self._live: Live | None = None
        self._drawn: tuple[TextScreen | None, str] | None = None
        self._next = 0.0
        self.message = ""
        """A line below the screen."""

    @staticmethod
    def is_possible() -> bool:
        """True if standard output is a terminal."""
        return sys.stdout.isatty()

    def __enter__(self) -> TerminalDisplay:
        if self.is_possible():
            self._live = Live(console=Console(), screen=True, auto_refresh=False)
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is None:
            return
        try:
            if error is None:
                self._next = 0.0
                self.draw()
        finally:
            self._live.__exit__(kind, error, trace)

    def draw(self) -> None:
        """Draw what has changed, at most every REDRAW_SECONDS of the host's time."""
        if self._live is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REDRAW_SECONDS
        now = (self._vm.display, self.message)
        if now == self._drawn:
            return
        self._drawn = now
        shown = Text(GRAPHICS) if now[0] is None else styled(now[0])
        self._live.update(Group(shown, Text(self.message)), refresh=True)
