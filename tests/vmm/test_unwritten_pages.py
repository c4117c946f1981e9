# SPDX-License-Identifier: Apache-2.0
"""Writes are noticed, whichever way they are made, also by a processor that keeps translations."""

from __future__ import annotations

import numpy as np
import pytest

from memvirt.mmu.access import READ, WRITE
from memvirt.mmu.page_state import FLAG_WRITE_CACHED
from memvirt.vmm.balloon import BalloonedPages
from memvirt.vmm.check import check_machine
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import LARGE_PAGES, PageState

from .driver import PRESENT, USER, WRITABLE, Driver

MODES = [PagingMode.SHADOW, PagingMode.NESTED]
FIRST, PAGES = 8, 40  # data pages; virtual page n is PPN n


class Processor(Driver):
    """Keeps translations as ``cpu/unicorn/tlb_fill.py`` lets the engine, and uses them unasked."""

    def __init__(self, paging: PagingMode, pages: int = PAGES) -> None:
        super().__init__(paging, pages=pages, frames=4 * pages + 400, scatter_seed=None)
        self.tlb: dict[int, tuple[int, bool]] = {}
        self.fills = 0
        for ppn in range(FIRST, PAGES):
            self.set_entry(ppn, (ppn << 12) | PRESENT | USER | WRITABLE)

    def _flush(self) -> None:
        self.tlb.clear()
        super()._flush()

    def _kept(self, ppn: int, kind: int) -> int:
        if self.vmm.take_stale().flush:
            self._flush()
        address, writable = self.tlb.get(ppn, (0, False))
        if ppn not in self.tlb or (kind == WRITE and not writable):
            self.fills += 1
            address = self._translate(ppn << 12, kind)
            rights = int(self.vmm.state.mmu.out_permissions)
            writable = kind == WRITE or rights & WRITABLE != 0
            writable &= self.vmm.pmap.state_of(ppn) is PageState.PRIVATE
            self.tlb[ppn] = address, writable
            if writable:
                self.vmm.pmap.flags[ppn] |= FLAG_WRITE_CACHED
        return address

    def load(self, ppn: int, slot: int) -> int:
        at = self._kept(ppn, READ) + slot * 8
        return int.from_bytes(self.machine.content[at : at + 8].tobytes(), "little")

    def store(self, ppn: int, slot: int, value: int) -> None:
        at = self._kept(ppn, WRITE) + slot * 8
        self.machine.content[at : at + 8] = list(value.to_bytes(8, "little"))


@pytest.mark.parametrize("paging", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_no_write_goes_unnoticed_and_no_read_counts_as_one(paging: PagingMode, seed: int) -> None:
    random = np.random.default_rng(seed)
    processor = Processor(paging)
    vmm, balloon = processor.vmm, BalloonedPages(processor.vmm)
    content = np.zeros((PAGES, 8), np.int64)
    unwritten: set[int] = set()  # what is to count as such
    for step in range(500):
        some = random.permutation(np.arange(FIRST, PAGES))[: random.integers(1, 8)]
        action = random.integers(0, 12)
        ppn, slot, value = int(some[0]), int(random.integers(8)), int(random.integers(1, 1 << 40))
        if action < 4:
            processor.store(ppn, slot, value)
            content[ppn, slot] = value
            unwritten.discard(ppn)
        elif action < 7:
            assert processor.load(ppn, slot) == content[ppn, slot]
        elif action == 7:
            vmm.write_physical((ppn << 12) + slot * 8, value.to_bytes(8, "little"))
            content[ppn, slot] = value
            unwritten.discard(ppn)
        elif action == 8:
            vmm.move(some)
        elif action == 9:
            vmm.unmap(some)
            unwritten -= set(some.tolist())
        elif action == 10:
            balloon.give_up(np.sort(some))
            content[some] = 0
            unwritten -= set(some.tolist())
        else:
            vmm.notice_writes(some)
            private = vmm.pmap.state[some] == PageState.PRIVATE
            unwritten |= set(some[private].tolist())
        found = FIRST + np.flatnonzero(vmm.unwritten(range(FIRST, PAGES)))
        assert set(found.tolist()) == unwritten, f"step {step}, action {action}"
        if step % 50 == 0:
            assert check_machine(processor.machine, [vmm]) == []
    for ppn in range(FIRST, PAGES):
        for slot in range(8):
            assert processor.load(ppn, slot) == content[ppn, slot]
    assert check_machine(processor.machine, [vmm]) == []


@pytest.mark.parametrize("paging", MODES)
def test_a_page_that_is_only_read_stays_unwritten_and_costs_one_fill(paging: PagingMode) -> None:
    processor = Processor(paging)
    vmm = processor.vmm
    processor.store(9, 0, 5)
    vmm.notice_writes([9])
    before = processor.fills
    for _ in range(5):
        assert processor.load(9, 0) == 5
    assert processor.fills == before + 1
    assert vmm.unwritten([9])[0]
    processor.store(9, 1, 6)
    processor.store(9, 2, 7)
    assert processor.fills == before + 2
    assert not vmm.unwritten([9])[0]


@pytest.mark.parametrize("paging", MODES)
def test_the_walk_of_the_guests_tables_writes_too(paging: PagingMode) -> None:
    """The processor sets accessed and dirty bits in the guest's last-level table, PPN 3."""
    processor = Processor(paging)
    vmm = processor.vmm
    vmm.notice_writes([3, 6])
    assert vmm.unwritten([3, 6]).tolist() == [True, True]
    processor.load(12, 0)  # never touched before
    assert vmm.unwritten([3, 6]).tolist() == [False, True]


def test_pages_of_a_large_page_are_noticed_one_by_one() -> None:
    processor = Processor(PagingMode.NESTED, 2 * LARGE_PAGES)
    vmm = processor.vmm
    for ppn in range(LARGE_PAGES):
        vmm.bring_back(ppn, write=True)
    assert vmm.make_large(0)
    vmm.notice_writes(range(LARGE_PAGES))
    processor.store(20, 0, 1)
    assert np.flatnonzero(~vmm.unwritten(range(FIRST, LARGE_PAGES))).tolist() == [20 - FIRST]
    assert vmm.pmap.large[0]  # noticing breaks no large page


def test_a_page_that_was_shared_counts_as_written_and_so_does_flat_memory() -> None:
    processor = Processor(PagingMode.NESTED)
    vmm = processor.vmm
    for ppn in (9, 10):
        processor.store(ppn, 0, 5)
    vmm.notice_writes([9, 10])
    vmm.share([10], vmm.make_shared(9))
    vmm.notice_writes([9, 10])
    assert not vmm.unwritten([9, 10]).any()
    flat = Driver(PagingMode.FLAT).vmm
    flat.notice_writes([9])
    assert not flat.unwritten([9])[0]
