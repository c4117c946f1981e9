# SPDX-License-Identifier: Apache-2.0
"""Breakpoints and watchpoints as gdb names them (packets ``Z`` and ``z``)."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

from memvirt.address import GuestVirtualAddress
from memvirt.cpu.debugging import DebugStop, ProcessorDebugging, StopKind, Watchpoint

MOST_WATCHED_BYTES = 512


class PointKind(IntEnum):
    """The number in the packet."""

    SOFTWARE = 0
    HARDWARE = 1
    WRITE = 2
    READ = 3
    ACCESS = 4


_BREAKPOINTS = (PointKind.SOFTWARE, PointKind.HARDWARE)
_STOP_NAMES = {PointKind.WRITE: "watch", PointKind.READ: "rwatch", PointKind.ACCESS: "awatch"}
_SEEN_BY = {
    StopKind.WRITE: (PointKind.WRITE, PointKind.ACCESS),
    StopKind.READ: (PointKind.READ, PointKind.ACCESS),
}
_Point = tuple[PointKind, GuestVirtualAddress, int]


def _aligned(gva: GuestVirtualAddress, count: int) -> Iterator[tuple[GuestVirtualAddress, int]]:
    """``count`` bytes from ``gva`` on as naturally aligned pieces of 1, 2, 4 or 8 bytes."""
    while count > 0:
        size = next(size for size in (8, 4, 2, 1) if size <= count and gva % size == 0)
        yield gva, size
        gva, count = GuestVirtualAddress(gva + size), count - size


class Points:
    """All that gdb has set, and none of it twice."""

    def __init__(self, debugging: ProcessorDebugging) -> None:
        self._debugging = debugging
        self._points: set[_Point] = set()

    def supports(self, kind: PointKind) -> bool:
        """Whether the processor can do it."""
        return kind in _BREAKPOINTS or self._debugging.has_watchpoints

    def insert(self, kind: PointKind, gva: GuestVirtualAddress, size: int) -> None:
        """Set one. Raises ValueError if so many bytes cannot be watched."""
        if kind not in _BREAKPOINTS and not 1 <= size <= MOST_WATCHED_BYTES:
            raise ValueError(f"{size} bytes cannot be watched: 1 to {MOST_WATCHED_BYTES}")
        self._points.add((kind, gva, size))
        self._apply()

    def remove(self, kind: PointKind, gva: GuestVirtualAddress, size: int) -> None:
        """Take one back. One that is not there is no mistake."""
        self._points.discard((kind, gva, size))
        self._apply()

    def clear(self) -> None:
        """Take all back."""
        self._points.clear()
        self._apply()

    def breaks_at(self, gva: GuestVirtualAddress) -> bool:
        """True if there is a breakpoint."""
        return any(kind in _BREAKPOINTS and at == gva for kind, at, _ in self._points)

    def _apply(self) -> None:
        self._debugging.set_breakpoints(
            {gva for kind, gva, _ in self._points if kind in _BREAKPOINTS}
        )
        if self._debugging.has_watchpoints:
            self._debugging.set_watchpoints(
                {
                    Watchpoint(at, length, kind is not PointKind.WRITE, kind is not PointKind.READ)
                    for kind, gva, size in self._points
                    if kind not in _BREAKPOINTS
                    for at, length in _aligned(gva, size)
                }
            )

    def reason(self, stop: DebugStop, *, breakpoints: bool) -> str:
        """What a stop reply says of ``stop``; of breakpoints only if gdb understands it."""
        if stop.kind is StopKind.BREAKPOINT and breakpoints:
            hardware = (PointKind.HARDWARE, stop.gva)
            at = {(kind, gva) for kind, gva, _ in self._points}
            return "hwbreak:;" if hardware in at else "swbreak:;"
        for kind, gva, size in self._points:
            if kind in _SEEN_BY.get(stop.kind, ()) and gva <= stop.gva < gva + size:
                return f"{_STOP_NAMES[kind]}:{gva:x};"
        return ""
