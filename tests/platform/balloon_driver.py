# SPDX-License-Identifier: Apache-2.0
"""A balloon's other two sides, made small: a guest's driver, and its memory as sets of pages."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from memvirt.platform.balloon import BalloonDevice, Command, Status

PAGES = 2048
LINUX = 0x3E  # all the capabilities Linux 6.1 asks for
BATCH_PPN = 7


class SetMemory:
    """A guest's memory as sets of page numbers: the simplest thing that can be right."""

    def __init__(self, pages: int = PAGES, pinned: frozenset[int] = frozenset()) -> None:
        self.pages = pages
        self.pinned = pinned
        self.given: set[int] = set()
        self.touched = 0
        self.content: dict[int, bytearray] = {}

    @property
    def ballooned(self) -> int:
        return len(self.given)

    def give_up(self, ppns: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
        numbers = ppns.tolist()
        assert len(set(numbers)) == len(numbers)
        assert all(0 <= ppn < self.pages for ppn in numbers)
        assert not self.given & set(numbers)
        verdicts = [ppn not in self.pinned for ppn in numbers]
        for ppn in set(numbers) - self.pinned:
            self.given.add(ppn)
            self.content.pop(ppn, None)
        return np.array(verdicts, bool)

    def take_back(self, ppns: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
        verdicts = [ppn in self.given for ppn in ppns.tolist()]
        self.given -= set(ppns.tolist())
        return np.array(verdicts, bool)

    def touch(self, ppn: int) -> None:
        if ppn in self.given:
            self.given.remove(ppn)
            self.touched += 1

    def read_physical(self, gpa: int, count: int) -> bytes:
        assert gpa >> 12 < self.pages
        assert (gpa & 0xFFF) + count <= 4096
        page = self.content.get(gpa >> 12, bytearray(4096))
        return bytes(page[gpa & 0xFFF : (gpa & 0xFFF) + count])

    def write_physical(self, gpa: int, data: bytes) -> None:
        assert gpa >> 12 < self.pages
        self.touch(gpa >> 12)
        page = self.content.setdefault(gpa >> 12, bytearray(4096))
        page[gpa & 0xFFF : (gpa & 0xFFF) + len(data)] = data
        assert len(page) == 4096


def connect(
    memory: SetMemory | None = None, *, target: int = PAGES, wanted: int = LINUX
) -> tuple[BalloonDevice, SetMemory]:
    memory = memory or SetMemory()
    device = BalloonDevice(memory)
    device.execute(Command.START, wanted, 0)
    assert device.execute(Command.GUEST_ID, 1, 0).status is Status.SUCCESS
    device.target = target
    return device, memory


def batch(
    device: BalloonDevice, memory: SetMemory, command: int, ppns: list[int], at: int = BATCH_PPN
) -> tuple[Status, list[int]]:
    """Send a batch as Linux does; the command's status and the entries' statuses."""
    memory.write_physical(at << 12, struct.pack(f"<{len(ppns)}Q", *(ppn << 12 for ppn in ppns)))
    status = device.execute(command, at, len(ppns)).status
    raw = memory.read_physical(at << 12, 8 * len(ppns))
    entries = struct.unpack(f"<{len(ppns)}Q", raw)
    assert [entry >> 12 for entry in entries] == ppns
    return status, [entry & 0xFFF for entry in entries]
