# SPDX-License-Identifier: Apache-2.0
"""The balloon device under any sequence of commands, against two sets of pages."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memvirt.platform.balloon import LARGE_PAGES, BalloonDevice, Command

from .balloon_driver import BATCH_PPN, LINUX, PAGES, SetMemory

numbers = (
    st.integers(0, 40)
    | st.integers(PAGES - 520, PAGES + 3)
    | st.integers(0, (1 << 64) - 1)
    | st.sampled_from([0, 512, 1024, 1536, 2048, BATCH_PPN])
)


class AnyDriver(RuleBasedStateMachine):
    """Random commands. The model is two sets of pages: locked, and still given up."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = SetMemory(pinned=frozenset({17, 1600}))
        self.device = BalloonDevice(self.memory)
        self.locked: set[int] = set()
        self.given: set[int] = set()
        self.agreed = 0

    @rule(wanted=st.sampled_from([LINUX, LINUX, LINUX, 2, 6, 0]) | numbers)
    def start(self, wanted: int) -> None:
        reply = self.device.execute(Command.START, wanted, 0)
        self._forget()
        self.agreed = wanted & 0x2E
        if not self.agreed & 4:
            self.agreed &= ~8
        assert reply.result == self.agreed
        if not self.agreed & 6:
            self.agreed = 0

    @rule(pages=st.integers(0, 20) | st.integers(0, PAGES))
    def set_target(self, pages: int) -> None:
        self.device.target = pages

    @rule()
    def reset(self) -> None:
        self.device.reset()
        self._forget()
        self.agreed = 0

    def _forget(self) -> None:
        self.locked.clear()
        self.given.clear()

    @rule(ppn=st.integers(0, 40) | st.integers(0, PAGES - 1))
    def touch(self, ppn: int) -> None:
        self.memory.touch(ppn)
        self.given.discard(ppn)

    def _expected(self, lock: bool, ppn: int, count: int) -> int:
        if ppn % count or ppn + count > PAGES:
            return 2
        pages = set(range(ppn, ppn + count))
        if not lock:
            if not pages <= self.locked:
                return 4
            self.locked -= pages
            self.given -= pages
            return 0
        if pages & self.locked:
            return 3
        if len(self.given) >= self.device.target:
            return 6
        if pages & self.memory.pinned:
            return 5
        self.locked |= pages
        self.given |= pages
        return 0

    @rule(lock=st.booleans(), ppn=numbers)
    def single(self, lock: bool, ppn: int) -> None:
        expected = self._expected(lock, ppn, 1) if self.agreed & 2 else 1 if self.agreed else 7
        command = Command.LOCK if lock else Command.UNLOCK
        assert self.device.execute(command, ppn, 0).status == expected

    @rule(
        lock=st.booleans(),
        large=st.booleans(),
        ppns=st.lists(numbers.map(lambda n: n & ((1 << 52) - 1)), max_size=12),
        at=st.sampled_from([BATCH_PPN, BATCH_PPN, 5, 1030]),
    )
    def batch(self, lock: bool, large: bool, ppns: list[int], at: int) -> None:
        raw = struct.pack(f"<{len(ppns)}Q", *(ppn << 12 for ppn in ppns))
        self.memory.write_physical(at << 12, raw)
        self.given.discard(at)
        command = Command.BATCHED_LOCK + (not lock) + 2 * large
        status = self.device.execute(command, at, len(ppns)).status
        if not self.agreed & (8 if large else 4):
            assert status == (1 if self.agreed else 7)
            return
        assert status == (3 if at in self.locked else 0)
        if at in self.locked:
            return
        count = LARGE_PAGES if large else 1
        answer = self.memory.read_physical(at << 12, 8 * len(ppns))
        for ppn, entry in zip(ppns, struct.unpack(f"<{len(ppns)}Q", answer), strict=True):
            own = lock and ppn <= at < ppn + count
            expected = 5 if own else self._expected(lock, ppn, count)
            assert entry == ppn << 12 | expected

    @invariant()
    def agrees(self) -> None:
        assert set(np.flatnonzero(self.device._locked).tolist()) == self.locked
        assert self.memory.given == self.given
        assert self.device.size == len(self.given)
        assert self.device.connected == bool(self.agreed)


TestAnyDriver = AnyDriver.TestCase
TestAnyDriver.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
