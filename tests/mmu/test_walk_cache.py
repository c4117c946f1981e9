# SPDX-License-Identifier: Apache-2.0
"""The cache of guest walks against none: two VMs get the same accesses, edits of tables and moves
of pages, one of them with all walks forgotten before each access. They must not differ."""

from __future__ import annotations

import random
import struct
from collections import Counter

import numpy as np
import pytest

from memvirt.mmu.access import FETCH, READ, WRITE
from memvirt.mmu.entry import CR0_WP, CR4_SMAP, CR4_SMEP, EFER_NXE
from memvirt.mmu.walk_cache import cached_walk, forget_walks
from memvirt.vmm.check import check_machine
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import PageState
from tests.vmm.driver import ROOTS, Driver

_TABLES = (*ROOTS, 1, 2, 3, 4)  # PPNs of the driver's guest tables: levels 4, 3, 2, 1, 1
_FLAGS = (0x67, 0x67, 0x67, 0x63, 0x61, 0x27, 0x07, 0x00, 0x8000_0000_0000_0067 - (1 << 64), 0xE7)
_ALWAYS = ("walk_references", "guest_walks")
_MEMORY = ("out_permissions", "out_large_page")
_TRANSLATED = ("walk_gpa", "walk_page_bytes", "walk_user",
               "walk_writable", "walk_no_execute", "walk_dirty", "walk_global")  # fmt: skip
_FAULT = ("fault_error", "fault_level")


class Pair:
    """One VM with the cache, one without."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.drivers = [Driver(PagingMode.NESTED, pages=64, frames=400) for _ in range(2)]
        self.outcomes: Counter[str] = Counter()

    def edit(self) -> None:
        """Write an entry of a guest table, by its physical address."""
        table, slot = self.rng.choice(_TABLES), self.rng.choice((0, 0, 1, 2, 3, 4, 5))
        below = self.rng.choice((1, 2, 3, 4, 8, 9, 20, 63, 200))
        entry = below << 12 | self.rng.choice(_FLAGS)
        self._store(table, slot, entry)

    def mend(self) -> None:
        """Make the upper tables whole again, so that walks succeed."""
        for root in ROOTS:
            self._store(root, 0, 1 << 12 | 0x67)
        self._store(1, 0, 2 << 12 | 0x67)
        for slot in range(2):
            self._store(2, slot, (3 + slot) << 12 | 0x67)
        self._store(2, 2, 0xE7)

    def _store(self, table: int, slot: int, entry: int) -> None:
        for driver in self.drivers:
            word = struct.pack("<Q", entry & (1 << 64) - 1)
            driver.vmm.write_physical((table << 12) + slot * 8, word)

    def move(self) -> None:
        """Another frame for a page, tables included, or none; its content stays."""
        ppn, act = self.rng.choice((*_TABLES, 8, 9, 20)), self.rng.randrange(4)
        for driver in self.drivers:
            if act == 0:
                driver.vmm.unmap([ppn])
            elif act == 1:
                driver.vmm.begin_sample([ppn])
            elif act == 2 and driver.vmm.pmap.state[ppn] == PageState.PRIVATE:
                driver.vmm.make_shared(ppn)
            else:
                driver.vmm.move([ppn])

    def registers(self) -> None:
        """CR3, and what rights depend on."""
        root, bits = self.rng.randrange(2), self.rng.randrange(32)
        for driver in self.drivers:
            driver.load_root(root)
            mmu = driver.vmm.state.mmu
            mmu.cr0 = 0x80000001 | (CR0_WP if bits & 1 else 0)
            mmu.efer = 0x500 | (EFER_NXE if bits & 2 else 0)
            mmu.cr4 = 0x20 | (CR4_SMEP if bits & 4 else 0) | (CR4_SMAP if bits & 8 else 0)
            mmu.cpl = 3 if bits & 16 else 0

    def compare(self) -> None:
        kind = self.rng.choice((READ, WRITE, FETCH))
        gva = self.rng.choice((0, 1, 2, 3, 4, 5, 512, 513, 1024, 1030)) << 12
        warm, cold = (driver.vmm.state.mmu for driver in self.drivers)
        forget_walks(cold)
        before = int(warm.guest_walks), int(warm.walk_references)
        if cached_walk(warm, gva, kind):
            self.outcomes["cached"] += 1
            warm.guest_walks, warm.walk_references = before
        addresses = [driver.attempt(gva, kind) for driver in self.drivers]
        self.outcomes["fault" if addresses[0] is None else "translated"] += 1
        assert addresses[0] == addresses[1], (hex(gva), kind)
        names = _ALWAYS + (_FAULT if addresses[0] is None else _TRANSLATED)
        if addresses[0] is not None and addresses[0] >= 0:
            names += _MEMORY
        for name in names:
            assert getattr(warm, name) == getattr(cold, name), (name, hex(gva), kind)


@pytest.mark.parametrize("seed", range(6))
def test_no_access_tells_whether_its_walk_was_cached(seed: int) -> None:
    pair = Pair(seed)
    for _ in range(250):
        action = pair.rng.random()
        if action < 0.15:
            pair.edit()
        elif action < 0.25:
            pair.mend()
        elif action < 0.32:
            pair.move()
        elif action < 0.37:
            pair.registers()
        for _ in range(4):
            pair.compare()
    warm, cold = pair.drivers
    assert bytes(warm.machine.content) == bytes(cold.machine.content)
    for driver in pair.drivers:
        assert check_machine(driver.machine, [driver.vmm]) == []
    assert min(pair.outcomes[kind] for kind in ("cached", "fault", "translated")) > 50


def test_the_checker_sees_a_table_that_is_not_where_a_walk_was_remembered() -> None:
    pair = Pair(0)
    pair.mend()
    driver = pair.drivers[0]
    driver.load_root(0)
    assert driver.attempt(0x400000, READ) is not None
    vmm = driver.vmm
    walks = vmm.page_tables.walk_cache  # type: ignore[attr-defined]
    assert np.count_nonzero(walks["generation"]) == 1
    assert check_machine(driver.machine, [vmm]) == []
    generation = int(vmm.state.mmu.walk_cache_generation)
    vmm.move([1])
    assert check_machine(driver.machine, [vmm]) == []
    vmm.state.mmu.walk_cache_generation = generation  # as if nobody had forgotten them
    (violation,) = check_machine(driver.machine, [vmm])
    assert (violation.invariant, violation.where) == (
        "I1", "cached walk of gVA 0x400000, table of level 3",
    )  # fmt: skip
    assert violation.found.startswith("PPN 0x1 in MPN")
    vmm.unmap([1])
    vmm.state.mmu.walk_cache_generation = generation
    assert [each.expected for each in check_machine(driver.machine, [vmm])] == [
        "no frame: it is not resident"
    ]
    walks["leaf_level"] = 77  # bears any damage
    walks["upper_entry"] = -1
    check_machine(driver.machine, [vmm])
