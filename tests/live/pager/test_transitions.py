# SPDX-License-Identifier: Apache-2.0
"""The page-state machine against a simple model: all interleavings of evictions, faults, discards
and deaths that Hypothesis thinks of.

The model knows for each page the contents a read may give: one after a write, two after a discard
(what was there, or zeros) until a read has shown which. Nothing of the machine's is used in it.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memvirt.live.pager.page_states import PageIndex, PageState, PageTableFile, Word
from memvirt.live.pager.transitions import PageStateMachine
from memvirt.live.pager.userfaultfd import EventPending

from .modelled_kernel import PAGES, ZERO, Death, ModelledKernel


class Copies:
    """A store that keeps everything."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytes] = {}

    def put(self, content: bytes) -> int:
        entry = len(self.blocks) + 1
        self.blocks[entry] = content
        return entry

    def read_into(self, entry: int, page: memoryview) -> None:
        page[:8] = self.blocks[entry]


class Eviction:
    """One batch on its way, as the evictor's process sees it."""

    def __init__(self, epoch: int, runs: list[tuple[PageIndex, int]]) -> None:
        self.epoch = epoch
        self.runs = runs
        self.contents: dict[int, bytes] = {}
        self.protected = self.read = self.stored = False


class PagerOfAVm(RuleBasedStateMachine):
    """One VM, one handler, one evictor; every rule is one step of one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.table = PageTableFile.create(Path(self.directory.name) / "pages", PAGES)
        self.allowed: list[set[bytes]] = [{ZERO} for _ in range(PAGES)]
        self.writes = 0
        self.kernel = ModelledKernel()
        self.copies = Copies()
        self.handler = self._new_handler()
        self.eviction: Eviction | None = None

    def teardown(self) -> None:
        self._settle()
        for page in range(PAGES):
            self.kernel.access(page, None)
        self._settle()
        assert not self.kernel.waiting, "a thread waits for ever"
        self.directory.cleanup()

    def _new_handler(self) -> PageStateMachine:
        handler = PageStateMachine(self.table, self.kernel, self.copies)
        handler.take_over()
        while True:
            try:
                self.kernel.allow_writes(PageIndex(0), PAGES)
                break
            except EventPending:
                first, count = self._read_remove()
                handler.discard(first, count)
                self._discard_is_over(first, count)
        self.kernel.wake(PageIndex(0), PAGES)
        handler.announce()
        return handler

    def _read_remove(self) -> tuple[PageIndex, int]:
        first, count = self.kernel.removes.popleft()
        return PageIndex(first), count

    def _discard_is_over(self, first: int, count: int) -> None:
        """From now on an old copy that came back would be a page lost and found at a wrong time."""
        for page in range(first, first + count):
            if self.kernel.content[page] is None:
                self.allowed[page] = {ZERO}

    def _handle(self, prefer_faults: bool) -> bool:
        """The handler reads one message and acts; False if there was none."""
        kernel = self.kernel
        if kernel.removes and not (prefer_faults and kernel.faults):
            first, count = self._read_remove()
            self.handler.discard(first, count)
            self._discard_is_over(first, count)
        elif kernel.faults:
            kind, page = kernel.faults.popleft()
            if kind == "missing":
                self.handler.missing(PageIndex(page))
            else:
                self.handler.write_fault(PageIndex(page))
        else:
            if self.handler.waiting:
                self.handler.try_again()
            return False
        if self.handler.waiting and not kernel.removes:
            self.handler.try_again()
        return True

    def _settle(self) -> None:
        self.kernel.die_in = None
        for _ in range(200):
            if not self._handle(prefer_faults=False) and not self.handler.waiting:
                return
        raise AssertionError("the handler never comes to rest")

    def _or_die(self, step) -> None:
        try:
            step()
        except Death:
            self.kernel.die_in = None
            self.handler = self._new_handler()

    # The VM

    @rule(page=st.integers(0, PAGES - 1))
    def vm_reads(self, page: int) -> None:
        self.kernel.access(page, None)

    @rule(page=st.integers(0, PAGES - 1), zero=st.booleans())
    def vm_writes(self, page: int, zero: bool) -> None:
        if any(other == page for other, _ in self.kernel.waiting):
            return  # two threads that race have no order a model could know
        self.writes += 1
        self.kernel.access(page, ZERO if zero else self.writes.to_bytes(8, "little"))

    @rule(first=st.integers(0, PAGES - 1), count=st.integers(1, 3))
    def vm_discards(self, first: int, count: int) -> None:
        count = min(count, PAGES - first)
        if any(first <= page < first + count for page, _ in self.kernel.waiting):
            return
        if self.kernel.removes:
            return  # the thread that discards waits until its event has been read
        self.kernel.discard(first, count)
        for page in range(first, first + count):
            self.allowed[page] = self.allowed[page] | {ZERO}

    # The handler

    @rule(prefer_faults=st.booleans())
    def handler_acts(self, prefer_faults: bool) -> None:
        self._or_die(lambda: self._handle(prefer_faults))

    @rule(calls=st.integers(0, 3), after=st.booleans())
    def handler_is_doomed(self, calls: int, after: bool) -> None:
        self.kernel.die_in, self.kernel.die_after_effect = calls, after

    @rule()
    def handler_is_killed(self) -> None:
        self.kernel.die_in = None
        self.handler = self._new_handler()

    @rule(page=st.integers(0, PAGES - 1))
    def handler_brings_back(self, page: int) -> None:
        def step() -> None:
            with contextlib.suppress(EventPending):
                self.handler.bring_back(PageIndex(page))

        self._or_die(step)

    # The evictor

    @precondition(lambda self: self.eviction is None)
    @rule(first=st.integers(0, PAGES - 1), count=st.integers(1, PAGES))
    def evictor_begins(self, first: int, count: int) -> None:
        runs = self.handler.begin(PageIndex(first), min(count, PAGES - first))
        self.eviction = Eviction(self.table.words[Word.EPOCH], runs)

    @precondition(lambda self: self.eviction is not None and not self.eviction.protected)
    @rule()
    def evictor_protects(self) -> None:
        assert self.eviction is not None
        try:
            for first, count in self.eviction.runs:
                self.kernel.write_protect(first, count)
            self.eviction.protected = True
        except EventPending:
            pass

    @precondition(
        lambda self: (
            self.eviction is not None and self.eviction.protected and not self.eviction.read
        )
    )
    @rule()
    def evictor_reads(self) -> None:
        assert self.eviction is not None
        for first, count in self.eviction.runs:
            for page in range(first, first + count):
                self.eviction.contents[page] = self.kernel.content[page] or ZERO
        self.eviction.read = True

    @precondition(
        lambda self: self.eviction is not None and self.eviction.read and not self.eviction.stored
    )
    @rule()
    def evictor_stores(self) -> None:
        assert self.eviction is not None
        for page, content in self.eviction.contents.items():
            self.table.index[page] = 0 if content == ZERO else self.copies.put(content)
        self.eviction.stored = True
        if self.table.words[Word.EPOCH] != self.eviction.epoch:
            self._withdraw()

    def _withdraw(self) -> None:
        assert self.eviction is not None
        for page in self.eviction.contents:
            if self.table.states[page] == PageState.RESIDENT:
                self.table.index[page] = 0
        self.eviction = None

    @precondition(lambda self: self.eviction is not None and self.eviction.stored)
    @rule()
    def evictor_commits(self) -> None:
        assert self.eviction is not None
        if self.table.words[Word.EPOCH] != self.eviction.epoch:
            self._withdraw()
            return

        def step() -> None:
            assert self.eviction is not None
            for first, count in self.eviction.runs:
                self.handler.commit(first, count)

        epoch = self.eviction.epoch
        self._or_die(step)
        if self.table.words[Word.EPOCH] != epoch:
            self._withdraw()
        self.eviction = None

    @precondition(lambda self: self.eviction is not None)
    @rule()
    def evictor_gives_up(self) -> None:
        """By an abort, which is also what a new evictor asks for when the old one has died."""
        assert self.eviction is not None
        if self.table.words[Word.EPOCH] != self.eviction.epoch:
            self._withdraw()
            return

        def step() -> None:
            assert self.eviction is not None
            for first, count in self.eviction.runs:
                while True:
                    try:
                        self.handler.abort(first, count)
                        break
                    except EventPending:
                        self._handle(prefer_faults=False)

        epoch = self.eviction.epoch
        self._or_die(step)
        if self.table.words[Word.EPOCH] != epoch:
            self._withdraw()
        self.eviction = None

    # What must hold

    @invariant()
    def contents_are_right(self) -> None:
        """Whatever was read, and whatever is in memory at any time."""
        for page, write, seen in self.kernel.results:
            assert seen in self.allowed[page], f"page {page}: {seen!r}, not {self.allowed[page]}"
            self.allowed[page] = {write if write is not None else seen}
        self.kernel.results.clear()
        for page, content in enumerate(self.kernel.content):
            assert content is None or content in self.allowed[page]

    @invariant()
    def stored_pages_are_holes_with_a_copy(self) -> None:
        for page, state in enumerate(self.table.states_view):
            if state == PageState.STORED:
                assert self.kernel.content[page] is None
                assert self.table.index_view[page] != 0


TestPagerOfAVm = PagerOfAVm.TestCase
TestPagerOfAVm.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
