# SPDX-License-Identifier: Apache-2.0
"""The VMM against a dictionary: any order of guest accesses, table edits, and remappings.

After each step every invariant holds (the checker) and every page reads as it was last written.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memvirt.mmu.page_state import FLAG_BALLOONED
from memvirt.vmm.balloon import BalloonedPages
from memvirt.vmm.census import SharedCost, full_count
from memvirt.vmm.check import check_machine
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import PageState
from tests.models import model_settings

from .driver import ACCESSED, DIRTY, PRESENT, USER, WRITABLE, Driver, PageFault

PAGES = 20
FIRST_DATA = 8
ppns = st.integers(FIRST_DATA, PAGES - 1)
any_ppns = st.integers(0, PAGES - 1)
virtual_pages = st.sampled_from([0, 1, 2, 511, 512])
words = st.integers(0, (1 << 64) - 1) | st.integers(0, 3)
slots = st.integers(0, 3)


class VmmModel(RuleBasedStateMachine):
    paging = PagingMode.SHADOW

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(self.paging, pages=PAGES, frames=400)
        self.balloon = BalloonedPages(self.driver.vmm)
        self.cost = SharedCost(self.driver.machine, self.driver.vmm.pmap)
        self.mapping: dict[int, tuple[int, bool]] = {}
        self.content: dict[tuple[int, int], int] = {}
        self.noticed: dict[int, bytes] = {}  # what pages had when writes began to be noticed

    # What the guest does -----------------------------------------------------------------------

    @rule(page=virtual_pages, ppn=ppns, writable=st.booleans())
    def map_page(self, page: int, ppn: int, writable: bool) -> None:
        flags = PRESENT | USER | (WRITABLE if writable else 0)
        self.driver.set_entry(page, (ppn << 12) | flags)
        self.mapping[page] = (ppn, writable)

    @rule(page=virtual_pages)
    def unmap_page(self, page: int) -> None:
        self.driver.set_entry(page, 0)
        self.mapping.pop(page, None)

    @rule(page=virtual_pages)
    def clear_accessed_and_dirty(self, page: int) -> None:
        self.driver.set_entry(page, self.driver.entry(page) & ~(ACCESSED | DIRTY))

    @rule(page=virtual_pages, slot=slots, value=words)
    def write(self, page: int, slot: int, value: int) -> None:
        expected = self.mapping.get(page)
        try:
            self.driver.write((page << 12) + slot * 8, value)
        except PageFault as fault:
            assert expected is None or not expected[1]
            assert fault.error == (2 if expected is None else 3)
            return
        assert expected is not None
        assert expected[1]
        self.content[expected[0], slot] = value
        assert self.driver.entry(page) & (ACCESSED | DIRTY) == ACCESSED | DIRTY

    @rule(page=virtual_pages, slot=slots)
    def read(self, page: int, slot: int) -> None:
        expected = self.mapping.get(page)
        try:
            value = self.driver.read((page << 12) + slot * 8)
        except PageFault as fault:
            assert expected is None
            assert fault.error == 0
            return
        assert expected is not None
        assert value == self.content.get((expected[0], slot), 0)
        assert self.driver.entry(page) & ACCESSED

    @rule(number=st.integers(0, 1))
    def load_root(self, number: int) -> None:
        self.driver.load_root(number)

    # What the host does ------------------------------------------------------------------------

    @rule(pages=st.sets(any_ppns, max_size=12))
    def move(self, pages: set[int]) -> None:
        vmm = self.driver.vmm
        private = sum(vmm.pmap.state_of(ppn) is PageState.PRIVATE for ppn in pages)
        assert vmm.move(sorted(pages)) == private

    @rule(pages=st.sets(any_ppns, max_size=12))
    def unmap(self, pages: set[int]) -> None:
        self.driver.vmm.unmap(sorted(pages))
        for ppn in pages:
            assert self.driver.vmm.pmap.state_of(ppn) in (PageState.UNMAPPED, PageState.SWAPPED)

    @rule(first=any_ppns, second=any_ppns)
    def share(self, first: int, second: int) -> None:
        vmm = self.driver.vmm
        if vmm.pmap.state_of(first) is PageState.PRIVATE:
            mpn = vmm.make_shared(first)
        elif vmm.pmap.state_of(first) is PageState.SHARED:
            mpn = int(vmm.pmap.frame[first])
        else:
            return
        equal = vmm.read_page(first) == vmm.read_page(second)
        private = vmm.pmap.state_of(second) is PageState.PRIVATE
        assert vmm.share([second], mpn).tolist() == ([second] if equal and private else [])

    @rule(pages=st.sets(any_ppns, max_size=12))
    def notice_writes(self, pages: set[int]) -> None:
        vmm = self.driver.vmm
        vmm.notice_writes(sorted(pages))
        for ppn in pages:
            private = vmm.pmap.state_of(ppn) is PageState.PRIVATE
            assert vmm.unwritten([ppn])[0] == private
            self.noticed[ppn] = vmm.read_page(ppn)

    @rule(ppn=any_ppns, offset=st.integers(0, 4088), value=words)
    def write_as_a_device(self, ppn: int, offset: int, value: int) -> None:
        """Anything to a page of data; to one of guest tables, what is there."""
        vmm, gpa = self.driver.vmm, (ppn << 12) + (offset & ~7)
        if ppn < FIRST_DATA:
            vmm.write_physical(gpa, vmm.read_physical(gpa, 8))
        else:
            vmm.write_physical(gpa, value.to_bytes(8, "little"))
            if offset < 8 * 4:
                self.content[ppn, offset // 8] = value
        assert not vmm.unwritten([ppn])[0]

    @rule(ppn=any_ppns, write=st.booleans())
    def bring_back(self, ppn: int, write: bool) -> None:
        self.driver.vmm.bring_back(ppn, write=write)

    @rule(pages=st.sets(ppns, max_size=8))
    def give_up(self, pages: set[int]) -> None:
        """The guest's balloon driver gives pages up, whatever state they are in."""
        vmm = self.driver.vmm
        before = vmm.machine.free_frames
        private = sum(vmm.pmap.state_of(ppn) is PageState.PRIVATE for ppn in pages)
        fresh = [not vmm.pmap.flags[ppn] & FLAG_BALLOONED for ppn in sorted(pages)]
        verdicts = self.balloon.give_up(np.array(sorted(pages), np.int64))
        assert verdicts.tolist() == fresh
        assert vmm.machine.free_frames >= before + private
        for ppn in pages:
            assert vmm.pmap.state_of(ppn) is PageState.UNMAPPED
        self.content = {at: word for at, word in self.content.items() if at[0] not in pages}

    @rule(pages=st.sets(any_ppns, max_size=8))
    def take_back(self, pages: set[int]) -> None:
        flags = self.driver.vmm.pmap.flags
        expected = [bool(flags[ppn] & FLAG_BALLOONED) for ppn in sorted(pages)]
        size = self.balloon.ballooned
        verdicts = self.balloon.take_back(np.array(sorted(pages), np.int64))
        assert verdicts.tolist() == expected
        assert self.balloon.ballooned == size - sum(expected)

    # What always holds -------------------------------------------------------------------------

    @invariant()
    def consistent(self) -> None:
        assert check_machine(self.driver.machine, [self.driver.vmm]) == []

    @invariant()
    def content_is_what_was_written(self) -> None:
        for (ppn, slot), value in self.content.items():
            raw = self.driver.vmm.read_physical((ppn << 12) + slot * 8, 8)
            assert int.from_bytes(raw, "little") == value

    @invariant()
    def unwritten_pages_are_as_they_were(self) -> None:
        vmm = self.driver.vmm
        for ppn in np.flatnonzero(vmm.unwritten(range(PAGES))).tolist():
            assert vmm.read_page(ppn) == self.noticed[ppn]

    @invariant()
    def pages_are_counted_as_they_change(self) -> None:
        pmap, machine = self.driver.vmm.pmap, self.driver.machine
        counts, cost = full_count(machine, pmap)
        assert (pmap.counts.tolist(), self.cost()) == (counts, pytest.approx(cost))

    @precondition(lambda self: self.paging is PagingMode.SHADOW)
    @rule()
    def zap(self) -> None:
        from memvirt.vmm.paging.shadow_table import zap_all  # noqa: PLC0415

        zap_all(self.driver.vmm.state)

    def teardown(self) -> None:
        self.driver.vmm.power_off()
        assert self.driver.machine.free_frames == self.driver.machine.frames


class NestedModel(VmmModel):
    paging = PagingMode.NESTED


TestShadowModel = VmmModel.TestCase
TestNestedModel = NestedModel.TestCase
# No loop over the two: its variable would be a third test.
TestShadowModel.settings = TestNestedModel.settings = model_settings(examples=60, steps=50)
