# SPDX-License-Identifier: Apache-2.0
"""Host memory that compiled kernels may touch by raw address: who owns which range.

Kernels load and store by host address (``native``), so no array bound guards them. Whoever hands
them an address says here what lies behind it: ``host_address`` for an array, ``HostRange`` for
memory that is no array of ours, the engine's register file for instance. The ordinary build only
returns the address. A *checked build* (``MEMVIRT_CHECKED=1``, see ``checked``) keeps the ranges in
a table that every raw access is looked up in, so that an access outside all of them is found.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np

from memvirt.compiled_cache import CHECKED

_KEPT_TABLES = 64  # a kernel on another thread may still search a table that has been replaced


@dataclass(frozen=True, slots=True)
class HostRange:
    """``size`` bytes from host address ``start`` on, and what they are for people."""

    start: int
    size: int
    name: str

    @property
    def end(self) -> int:
        return self.start + self.size

    def __str__(self) -> str:
        return f"{self.name} [{self.start:#x}, {self.end:#x})"


class RangeTable:
    """The ranges kernels may touch now, in a form compiled code can search.

    ``cell`` holds the host address of the current table: its number of ranges, then start and end
    of each in ascending order, as 64-bit words. Ranges that overlap are one range there; ranges
    that only touch stay two, since no single access may reach from one array into another. A table
    is never changed, only replaced: kernels on other threads need no lock.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may run while this thread holds it
        self._ranges: dict[int, HostRange] = {}
        self._next = 0
        self._tables: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        self.cell = np.zeros(1, np.int64)
        self._publish()

    def add(self, new: HostRange) -> int:
        """Allow a range; returns the number that ``remove`` takes."""
        with self._lock:
            self._next += 1
            self._ranges[self._next] = new
            self._publish()
            return self._next

    def remove(self, number: int) -> None:
        """Allow a range no more; one that was removed before is none of our business."""
        with self._lock:
            if self._ranges.pop(number, None) is not None:
                self._publish()

    def _publish(self) -> None:
        merged: list[list[int]] = []
        ranges = self._ranges.copy().values()  # a finalizer may come in between
        for start, end in sorted((each.start, each.end) for each in ranges):
            if merged and start < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        table = np.array([len(merged), *(word for pair in merged for word in pair)], np.int64)
        self._tables.append(table)
        self.cell[0] = table.ctypes.data
        del self._tables[:-_KEPT_TABLES]

    def ranges(self) -> list[HostRange]:
        """The ranges allowed now, in ascending order."""
        with self._lock:
            return sorted(self._ranges.copy().values(), key=lambda each: (each.start, each.end))

    def contains(self, address: int, size: int) -> bool:
        """True if all of an access lies in one range, as compiled code decides it."""
        words = self._tables[-1].tolist()
        starts, ends = words[1::2], words[2::2]
        below = bisect_right(starts, address) - 1
        return below >= 0 and address + size <= ends[below]

    def describe(self, address: int, size: int) -> str:
        """Where an access lies that is in no range: its neighbours below and above."""
        address &= (1 << 64) - 1
        below = [each for each in self.ranges() if each.start <= address]
        above = [each for each in self.ranges() if each.start > address]
        parts = []
        if below:
            last = max(below, key=lambda each: each.end)
            reach = address + size - last.end
            parts.append(f"{reach} bytes past the end of {last}" if reach > 0 else f"in {last}")
        if above:
            parts.append(f"{above[0].start - address} bytes before {above[0]}")
        return "; ".join(parts) or "no range is registered"


TABLE = RangeTable()


def host_address(array: np.ndarray[Any, Any], name: str) -> int:
    """The host address of ``array``, for kernels to use as long as the array lives.

    ``name`` is for reports of the checked build. Obligation: whoever stores the address keeps
    ``array`` itself (not a view of it) alive; in a checked build the range ends with the array.
    """
    address = int(array.ctypes.data)
    if CHECKED:
        number = TABLE.add(HostRange(address, array.nbytes, name))
        weakref.finalize(array, TABLE.remove, number).atexit = False
    return address


class ForeignRanges:
    """Ranges of memory that no array of ours owns, allowed until ``close``, or until collected."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        weakref.finalize(self, _remove_all, self._numbers).atexit = False

    def add(self, start: int, size: int, name: str) -> int:
        """Allow a range; returns ``start``."""
        if CHECKED:
            self._numbers.append(TABLE.add(HostRange(start, size, name)))
        return start

    def close(self) -> None:
        """The memory is about to be freed: allow none of it any more. Again does nothing."""
        _remove_all(self._numbers)


def _remove_all(numbers: list[int]) -> None:
    while numbers:
        TABLE.remove(numbers.pop())
