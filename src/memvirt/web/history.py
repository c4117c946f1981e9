# SPDX-License-Identifier: Apache-2.0
"""What the page has shown, so that time can be dragged back: keyframes and differences, bounded.

Frames are kept in *segments*: a keyframe and the differences after it. When they take more than
``most_bytes`` the oldest segment goes.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Any

from .wire import Parts, decode, encode

_SEGMENT_FRAMES = 64


@dataclass(slots=True)
class _Segment:
    first: int  # number of its keyframe
    numbers: list[int] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    bytes: int = 0


class History:
    """Page states by frame number, ascending. Not thread-safe: the source's thread owns it."""

    def __init__(self, most_bytes: int = 64 << 20) -> None:
        self._most_bytes = most_bytes
        self._segments: list[_Segment] = []
        self._last: Parts | None = None
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes it takes."""
        return self._bytes

    @property
    def first(self) -> int | None:
        """The oldest frame that can still be had."""
        return self._segments[0].first if self._segments else None

    def add(self, number: int, header: dict[str, Any], parts: Parts) -> None:
        """Keep frame ``number``, greater than all before."""
        if not self._segments or len(self._segments[-1].numbers) >= _SEGMENT_FRAMES:
            self._segments.append(_Segment(number))
            self._last = None
        segment = self._segments[-1]
        message = encode(header, parts, self._last)
        segment.numbers.append(number)
        segment.messages.append(message)
        segment.bytes += len(message)
        self._bytes += len(message)
        self._last = parts
        while self._bytes > self._most_bytes and len(self._segments) > 1:
            self._bytes -= self._segments.pop(0).bytes

    def _segment_of(self, number: int) -> _Segment | None:
        firsts = [segment.first for segment in self._segments]
        position = bisect.bisect_right(firsts, number) - 1
        return self._segments[position] if position >= 0 else None

    def at(self, number: int) -> tuple[dict[str, Any], Parts]:
        """Header and arrays of the newest frame that is not newer than ``number``.

        Raises KeyError if that has been dropped, or was never there.
        """
        segment = self._segment_of(number)
        if segment is None:
            raise KeyError(number)
        header: dict[str, Any] = {}
        parts: Parts | None = None
        for kept, message in zip(segment.numbers, segment.messages, strict=True):
            if kept > number:
                break
            header, parts = decode(message, parts)
        assert parts is not None
        return header, parts

    def life(self, part: str, index: int) -> list[tuple[dict[str, Any], int]]:
        """Every known change of one page: the frame's header, and its class from then on."""
        changes: list[tuple[dict[str, Any], int]] = []
        for segment in self._segments:
            parts: Parts | None = None
            for message in segment.messages:
                header, parts = decode(message, parts)
                array = parts.get(part)
                if array is None or index >= array.size:
                    continue
                if not changes or changes[-1][1] != array[index]:
                    changes.append((header, int(array[index])))
        return changes
