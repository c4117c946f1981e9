# SPDX-License-Identifier: Apache-2.0
"""Where the keys of a TOML document stand.

``tomllib`` gives values without their places. This scanner walks a document that ``tomllib`` has
accepted (TOML 1.0) and notes the line of every key, table and array element; of the values it
understands only where they end. On anything else it raises ValueError.
"""

from __future__ import annotations

import re
import tomllib

Location = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN = re.compile(r"[^,\]}#\n]+")  # numbers, booleans, dates with a blank in them


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Location, int] = {}
        self._tables: dict[Location, int] = {}  # arrays of tables: index of the last one
        self._line, self._counted = 1, 0

    def _note(self, location: Location, position: int) -> None:
        """Note ``location`` and the tables above it, each where it is first mentioned."""
        self._line += self.text.count("\n", self._counted, position)
        self._counted = position
        for depth in range(1, len(location) + 1):
            self.lines.setdefault(location[:depth], self._line)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise ValueError(f"unexpected text at offset {self.at}")
        self.at = found.end()

    def _take(self, symbol: str) -> bool:
        if not self.text.startswith(symbol, self.at):
            return False
        self.at += len(symbol)
        return True

    def _key(self) -> Location:
        """A key, dotted or not, its parts bare or quoted."""
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            start = self.at
            quoted = self.text[start : start + 1] in ('"', "'")
            self._skip(_STRING if quoted else _BARE_KEY)
            raw = self.text[start : self.at]
            parts.append(next(iter(tomllib.loads(f"{raw}=0"))) if quoted else raw)
            self._skip(_SPACE)
            if not self._take("."):
                return tuple(parts)

    def _resolve(self, key: Location) -> Location:
        """A table's key with the indices of the arrays of tables it goes through."""
        location: Location = ()
        for part in key:
            location = (*location, part)
            if location in self._tables:
                location = (*location, self._tables[location])
        return location

    def _header(self) -> Location:
        start = self.at
        array = self._take("[[")
        if not array:
            self._take("[")
        *above, last = self._key()
        location = (*self._resolve(tuple(above)), last)
        if array:
            self._tables[location] = self._tables.get(location, -1) + 1
        location = self._resolve((*above, last))
        self._take("]]" if array else "]")
        self._note(location, start)
        return location

    def _pair(self, inside: Location) -> None:
        self._skip(_SPACE)
        start = self.at
        location = (*inside, *self._key())
        self._note(location, start)
        if not self._take("="):
            raise ValueError(f"no = at offset {self.at}")
        self._skip(_SPACE)
        self._value(location)

    def _value(self, location: Location) -> None:
        if self._take("["):
            self._elements(location)
        elif self._take("{"):
            self._skip(_BLANK)
            while not self._take("}"):
                self._pair(location)
                self._skip(_BLANK)
                self._take(",")
                self._skip(_BLANK)
        else:
            self._skip(_STRING if self.text[self.at : self.at + 1] in ('"', "'") else _PLAIN)

    def _elements(self, location: Location) -> None:
        index = 0
        self._skip(_BLANK)
        while not self._take("]"):
            self._note((*location, index), self.at)
            self._value((*location, index))
            self._skip(_BLANK)
            self._take(",")
            self._skip(_BLANK)
            index += 1

    def scan(self) -> dict[Location, int]:
        inside: Location = ()
        self._skip(_BLANK)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                inside = self._header()
            else:
                self._pair(inside)
            self._skip(_BLANK)
        return self.lines


def toml_lines(text: str) -> dict[Location, int]:
    """Line (from 1) of every key, table and array element of a valid TOML document."""
    return _Scanner(text).scan()


def line_of(text: str, location: Location) -> int:
    """Line of what stands at ``location`` of a valid TOML document, or of the nearest table above
    that the document mentions; 1 if none is."""
    lines = toml_lines(text)
    for depth in range(len(location), 0, -1):
        if location[:depth] in lines:
            return lines[location[:depth]]
    return 1
