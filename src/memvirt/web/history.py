# SPDX-License-Identifier: Apache-2.0
"""What the page has shown, so that time can be dragged back: keyframes and differences, bounded.

Moments are kept in *segments*: a keyframe and the differences after it. When they take more than
``most_bytes`` the oldest segment goes. Each array of a moment is deflated by itself, if it is big,
and its lowest and highest changed index stand beside it, so that the life of one page is found
without unpacking everything.
"""

from __future__ import annotations

import bisect
import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .wire import Change, Classes, Parts, changes, unpack

_SEGMENT_FRAMES = 64
_FAST = 1  # zlib's level
_WORTH_DEFLATING = 4096  # bytes: most frames change little, and deflating costs more than it saves


@dataclass(frozen=True, slots=True)
class _Kept:
    """A change, ``kept`` deflated if it is big.

    ``width`` of a gap 0: a whole array; ``size`` 0: there is none any more.
    """

    size: int
    count: int
    width: int
    lowest: int
    highest: int
    kept: bytes
    deflated: bool

    @classmethod
    def of(cls, change: Change) -> _Kept:
        width, raw = change.raw()
        ends = (0, change.size - 1)
        if change.indices is not None:
            ends = (int(change.indices[0]), int(change.indices[-1]))
        deflated = len(raw) >= _WORTH_DEFLATING
        kept = zlib.compress(raw, _FAST) if deflated else raw
        return cls(change.size, change.values.size, width, *ends, kept, deflated)

    @property
    def raw(self) -> bytes:
        return zlib.decompress(self.kept) if self.deflated else self.kept

    def apply(self, array: Classes | None) -> Classes:
        """The array after the change; ``array`` before it may be changed."""
        raw = self.raw
        if not self.width:
            return np.frombuffer(raw, np.uint8).copy()
        assert array is not None
        indices, values = unpack(raw, 0, self.count, self.width)
        array[indices] = values
        return array

    def value_at(self, index: int) -> int | None:
        """The new value of one element, None if it did not change."""
        if not self.lowest <= index <= self.highest:
            return None
        raw = self.raw
        if not self.width:
            return raw[index]
        indices, values = unpack(raw, 0, self.count, self.width)
        position = int(np.searchsorted(indices, index))
        return int(values[position]) if indices[position] == index else None


@dataclass(frozen=True, slots=True)
class _Moment:
    number: int
    header: bytes  # JSON, deflated
    parts: dict[str, _Kept]

    @property
    def bytes(self) -> int:
        return len(self.header) + sum(len(kept.kept) for kept in self.parts.values())

    def opened(self) -> dict[str, Any]:
        opened: dict[str, Any] = json.loads(zlib.decompress(self.header))
        return opened


@dataclass(slots=True)
class _Segment:
    moments: list[_Moment] = field(default_factory=list)
    bytes: int = 0


class History:
    """Page states by frame number, ascending. Not thread-safe: the source's thread owns it."""

    def __init__(self, most_bytes: int = 64 << 20) -> None:
        self._most_bytes = most_bytes
        self._segments: list[_Segment] = []
        self._last: Parts | None = None
        self._bytes = 0

    @property
    def size(self) -> int:
        """Bytes of what is kept."""
        return self._bytes

    @property
    def first(self) -> int | None:
        """The oldest frame that can still be had."""
        return self._segments[0].moments[0].number if self._segments else None

    def add(self, number: int, header: bytes, parts: Parts) -> None:
        """Keep frame ``number``, greater than all before, with its header (a JSON object).

        ``parts`` must not change any more.
        """
        if not self._segments or len(self._segments[-1].moments) >= _SEGMENT_FRAMES:
            self._segments.append(_Segment())
            self._last = None
        moment = _Moment(
            number,
            zlib.compress(header, _FAST),
            {change.name: _Kept.of(change) for change in changes(parts, self._last)},
        )
        segment, size = self._segments[-1], moment.bytes
        segment.moments.append(moment)
        segment.bytes += size
        self._bytes += size
        self._last = parts
        while self._bytes > self._most_bytes and len(self._segments) > 1:
            self._bytes -= self._segments.pop(0).bytes

    def at(self, number: int) -> tuple[dict[str, Any], Parts]:
        """Header and arrays of the newest frame that is not newer than ``number``.

        Raises KeyError if that has been dropped, or was never there.
        """
        firsts = [segment.moments[0].number for segment in self._segments]
        position = bisect.bisect_right(firsts, number) - 1
        if position < 0:
            raise KeyError(number)
        parts: Parts = {}
        moment = self._segments[position].moments[0]
        for later in self._segments[position].moments:
            if later.number > number:
                break
            moment = later
            for name, kept in later.parts.items():
                if kept.size:
                    parts[name] = kept.apply(parts.get(name))
                else:
                    parts.pop(name, None)
        return moment.opened(), parts

    def life(self, part: str, index: int) -> list[tuple[dict[str, Any], int]]:
        """Every known change of one page: the frame's header, and its class from then on."""
        lived: list[tuple[dict[str, Any], int]] = []
        for segment in self._segments:
            for moment in segment.moments:
                kept = moment.parts.get(part)
                if kept is None or index >= kept.size:
                    continue
                value = kept.value_at(index)
                if value is not None and (not lived or lived[-1][1] != value):
                    lived.append((moment.opened(), value))
        return lived
