# SPDX-License-Identifier: Apache-2.0
"""Every EPT entry at every level, and every access, against the model: SDM vol. 3C section 29.3."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from memvirt.machine.memory import FrameKind, MachineMemory
from memvirt.mmu.access import FETCH, READ, WRITE
from memvirt.mmu.entry import EPT_MISCONFIGURATION
from memvirt.mmu.second_level import MISS, ept_walk
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor

from . import oracle

RIGHT = {READ: 1, WRITE: 2, FETCH: 4}
LARGE = 1 << 7
PPN, OFFSET = 5, 0x678
GPA = PPN << 12 | OFFSET


class Subject:
    """Nested entries from a root of our own to frame 5; large pages begin at machine address 0."""

    def __init__(self) -> None:
        self.machine = MachineMemory(64)
        self.vmm = VirtualMachineMonitor(self.machine, 8, PagingMode.NESTED)
        self.tables = [int(mpn) for mpn in self.machine.allocate(4, kind=FrameKind.NESTED)]
        self.words = self.machine.content.view(np.int64).reshape(-1, 512)
        self.vmm.state.mmu.nested_root = self.tables[0]
        self.seen: set[str] = set()

    def path(self, flags: tuple[int, ...]) -> None:
        """Set the entries from the root down; a level that maps a large page has its base at 0."""
        for level, flag in zip((4, 3, 2, 1), flags, strict=True):
            below = self.tables[5 - level] if level > 1 else PPN
            frame = 0 if flag & LARGE and level < 4 else below
            self.words[self.tables[4 - level], PPN if level == 1 else 0] = frame << 12 | flag

    def compare(self, flags: tuple[int, ...]) -> None:
        """Every kind of access, walked cold and walked again."""
        mmu = self.vmm.state.mmu
        self.path(flags)
        memory = bytearray(self.machine.content.tobytes())
        for kind in (READ, WRITE, FETCH):
            expected = oracle.ept(memory, self.tables[0] << 12, GPA, RIGHT[kind], 40)
            self.vmm.page_tables.nested_cache["tag"] = 0  # type: ignore[attr-defined]
            for _ in range(2):
                mmu.walk_references = 0
                address = ept_walk(mmu, GPA, kind)
                where = f"{[hex(flag) for flag in flags]} access {kind}"
                assert mmu.walk_references == expected[2], where
                if expected[0] == "ok":
                    assert address == expected[1], where
                else:
                    assert address == MISS, where
                    assert mmu.violation_gpa == GPA, where
                    assert mmu.violation_level == expected[1], where
                    misconfigured = bool(mmu.violation_qualification & EPT_MISCONFIGURATION)
                    assert misconfigured == (expected[0] == "misconfiguration"), where
            self.seen.add(expected[0])


@pytest.fixture
def subject() -> Subject:
    return Subject()


def test_all_rights_at_all_levels(subject: Subject) -> None:
    for rights in itertools.product(range(8), repeat=4):
        subject.compare((*rights[:3], rights[3] | 0x30))
    assert subject.seen == {"ok", "violation", "misconfiguration"}


@pytest.mark.parametrize("level", [4, 3, 2, 1])
def test_every_bit_of_an_entry(subject: Subject, level: int) -> None:
    """Each bit alone and each memory type, in entries of tables and of pages."""
    leaf_flags = [0x37] if level == 1 else [0x07, 0x37 | LARGE]
    variants = [flag ^ 1 << bit for flag in leaf_flags for bit in (*range(12), *range(40, 63))]
    variants += [flag & ~0x38 | kind << 3 for flag in leaf_flags for kind in range(8)]
    if 1 < level < 4:  # address bits that a large page must leave clear
        variants += [0x37 | LARGE | 1 << bit for bit in range(12, 12 + 9 * (level - 1))]
    for flag in variants:
        flags = [0x07, 0x07, 0x07, 0x37]
        flags[4 - level] = flag
        subject.compare(tuple(flags))
    assert subject.seen == {"ok", "violation", "misconfiguration"}
