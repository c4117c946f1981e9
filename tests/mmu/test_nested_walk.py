# SPDX-License-Identifier: Apache-2.0
"""EPT walks and two-dimensional walks against the model."""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest

from memvirt.machine.memory import FrameKind, MachineMemory
from memvirt.mmu.access import FETCH, NEED_PAGE, OK, READ, TRUE_FAULT, WRITE
from memvirt.mmu.entry import EPT_MISCONFIGURATION
from memvirt.mmu.guest_walk import guest_walk
from memvirt.mmu.mmu_state import NESTED_CACHE_DTYPE, NESTED_CACHE_ENTRIES
from memvirt.mmu.second_level import MISS, ept_walk
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.paging.nested import drop_nested_entry, nested_access

from . import oracle

PAGES = 32
RIGHT = {READ: 1, WRITE: 2, FETCH: 4}


class ThroughEpt:
    """Guest-physical memory as the model sees it: each read is an EPT walk first."""

    class Violation(Exception):
        pass

    def __init__(self, machine: MachineMemory, root: int) -> None:
        self.memory = bytearray(machine.content.tobytes())
        self.root = root
        self.reads = 0

    def translate(self, gpa: int, right: int) -> int:
        kind, value, reads = oracle.ept(self.memory, self.root, gpa, right, 40)
        self.reads += reads
        if kind != "ok":
            raise self.Violation(gpa, kind)
        return value

    def __getitem__(self, where: slice) -> bytes:
        address = self.translate(where.start, 1)
        return bytes(self.memory[address : address + where.stop - where.start])


def _ept_entry(rng: random.Random, frame: int, leaf: bool) -> int:
    entry = frame << 12 | rng.choice((7, 7, 7, 7, 5, 3, 1)) | (0x30 if leaf else 0)
    if rng.random() < 0.06:
        entry ^= 1 << rng.choice([*range(12), *range(40, 52)])
    return 0 if rng.random() < 0.05 else entry


def _random_machine(rng: random.Random) -> tuple[VirtualMachineMonitor, int]:
    """A VM with a random EPT over scattered frames, and random guest tables."""
    machine = MachineMemory(256)
    vmm = VirtualMachineMonitor(machine, PAGES, PagingMode.NESTED)
    frames = rng.sample(range(100, 200), PAGES)
    tables = [int(mpn) for mpn in machine.allocate(4, kind=FrameKind.NESTED)]
    words = machine.content.view(np.uint64).reshape(-1, 512)
    for level, table in enumerate(tables[:3]):
        words[table, 0] = _ept_entry(rng, tables[level + 1], False)
    for ppn, frame in enumerate(frames):
        words[tables[3], ppn] = _ept_entry(rng, frame, True)
    for frame in frames:
        for slot in range(2):
            words[frame, slot] = rng.randrange(PAGES) << 12 | rng.choice((0x7, 0x67, 0x3, 0x63, 0))
    vmm.state.mmu.nested_root = tables[0]
    mmu = vmm.state.mmu
    mmu.cr0, mmu.cr4, mmu.efer, mmu.cr3 = 0x80010001, 0x20, 0xD00, rng.randrange(8) << 12
    return vmm, tables[0] << 12


def test_random_two_dimensional_walks() -> None:
    rng = random.Random(24)
    outcomes = {"ok": 0, "fault": 0, "violation": 0}
    for _ in range(400):
        vmm, root = _random_machine(rng)
        model_memory = ThroughEpt(vmm.machine, root)
        cpu = oracle.Cpu(cr3=int(vmm.state.mmu.cr3))
        access = rng.choice(("read", "fetch"))
        gva = rng.choice((0, 0x1000, 0x200000, 0x40000000)) + rng.randrange(4096)
        vmm.state.mmu.walk_references = 0
        status = guest_walk(vmm.state.mmu, gva, {"read": 0, "fetch": 2}[access], False)
        try:
            expected = oracle.walk(model_memory, cpu, access, gva)  # type: ignore[arg-type]
        except ThroughEpt.Violation as violation:
            outcomes["violation"] += 1
            assert status == NEED_PAGE
            assert vmm.state.mmu.violation_gpa == violation.args[0]
            wrong = bool(vmm.state.mmu.violation_qualification & EPT_MISCONFIGURATION)
            assert wrong == (violation.args[1] == "misconfiguration")
            continue
        if expected.error is not None:
            outcomes["fault"] += 1
            assert status == TRUE_FAULT
            assert vmm.state.mmu.fault_error == expected.error
        else:
            outcomes["ok"] += 1
            assert status == OK
            assert vmm.state.mmu.walk_gpa == expected.gpa
        assert vmm.state.mmu.walk_references == expected.reads + model_memory.reads
    assert min(outcomes.values()) > 40, outcomes


@pytest.mark.parametrize("kind", RIGHT)
def test_random_ept_walks(kind: int) -> None:
    rng = random.Random(kind)
    seen = set()
    for _ in range(300):
        vmm, root = _random_machine(rng)
        memory = bytearray(vmm.machine.content.tobytes())
        gpa = rng.randrange(PAGES << 12)
        vmm.state.mmu.walk_references = 0
        address = ept_walk(vmm.state.mmu, gpa, kind)
        outcome, value, reads = oracle.ept(memory, root, gpa, RIGHT[kind], 40)
        seen.add(outcome)
        assert vmm.state.mmu.walk_references == reads
        if outcome == "ok":
            assert address == value
        else:
            assert address == MISS
            assert vmm.state.mmu.violation_level == value
    assert seen == {"ok", "violation", "misconfiguration"}


def _forget_all(vmm: VirtualMachineMonitor) -> None:
    size = NESTED_CACHE_DTYPE.itemsize * NESTED_CACHE_ENTRIES
    ctypes.memset(int(vmm.state.mmu.nested_cache_at), 0, size)


def _all_walks(vmm: VirtualMachineMonitor, *, cold: bool) -> list[tuple[int, ...]]:
    """What every page and kind of access comes to: address, references, rights or violation.

    ``cold`` empties the nested cache before each.
    """
    mmu, found = vmm.state.mmu, []
    for gpa in range(0, (PAGES + 2) << 12, 0x1000 - 8):
        for kind in RIGHT:
            if cold:
                _forget_all(vmm)
            before = int(mmu.walk_references)
            address = ept_walk(vmm.state.mmu, gpa, kind)
            references = int(mmu.walk_references) - before
            if address == MISS:
                why = (int(mmu.violation_level), int(mmu.violation_qualification))
            else:
                why = (int(mmu.out_permissions),)
            found.append((address, references, *why))
    return found


def test_nested_cache_answers_as_the_table_does() -> None:
    """Cold and warm walks are equal in all they report, and none outlives its entry."""
    rng = random.Random(11)
    for _ in range(40):
        vmm, _ = _random_machine(rng)
        mmu = vmm.state.mmu
        cold = _all_walks(vmm, cold=True)
        assert mmu.nested_cache_hits == 0
        assert _all_walks(vmm, cold=False) == cold
        hits = int(mmu.nested_cache_hits)
        assert _all_walks(vmm, cold=False) == cold
        reached = [ppn for ppn in range(PAGES) if ept_walk(vmm.state.mmu, ppn << 12, 0) >= 0]
        assert (mmu.nested_cache_hits > hits) == bool(reached)
        for ppn in reached:
            assert drop_nested_entry(vmm.state, ppn) == 1
            for kind in RIGHT:
                assert ept_walk(vmm.state.mmu, ppn << 12, kind) == MISS


def test_a_cold_four_on_four_walk_is_24_references() -> None:
    machine = MachineMemory(512, scatter_seed=1)
    vmm = VirtualMachineMonitor(machine, PAGES, PagingMode.NESTED)
    for level in range(4):
        vmm.write_physical(level << 12, ((level + 1) << 12 | 7).to_bytes(8, "little"))
    mmu = vmm.state.mmu
    mmu.cr0, mmu.cr4, mmu.efer, mmu.cr3 = 0x80010001, 0x20, 0xD00, 0
    assert nested_access(vmm.state, 0, READ) == OK
    mmu.walk_references = 0
    assert nested_access(vmm.state, 0, READ) == OK
    assert mmu.walk_references == 24


@pytest.mark.parametrize(("levels", "most"), [(4, 24), (5, 29)])
def test_no_counted_walk_exceeds_the_architecture(levels: int, most: int) -> None:
    """(g + 1)(h + 1) - 1 references for g guest levels on h = 4 nested ones, at most: whatever had
    to be filled first, and whatever accessed and dirty bits the walk had to set."""
    for kind in (READ, WRITE, FETCH):
        vmm = VirtualMachineMonitor(MachineMemory(512, scatter_seed=1), PAGES, PagingMode.NESTED)
        for level in range(levels):
            vmm.write_physical(level << 12, ((level + 1) << 12 | 7).to_bytes(8, "little"))
        mmu = vmm.state.mmu
        mmu.cr0, mmu.cr4, mmu.efer, mmu.cr3 = 0x80010001, 0x20 | (levels == 5) << 12, 0xD00, 0
        assert nested_access(vmm.state, 0, kind) == OK
        assert vmm.state.hidden_faults == levels + 1
        assert vmm.state.walks == 1
        assert mmu.walk_references == most
