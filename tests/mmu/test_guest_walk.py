# SPDX-License-Identifier: Apache-2.0
"""The compiled guest walk against the model: every paging mode, every rule, write-back included."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from memvirt.address import signed64, unsigned64
from memvirt.machine.memory import MachineMemory
from memvirt.mmu.access import FETCH, OK, READ, TRUE_FAULT, WRITE
from memvirt.mmu.guest_walk import guest_walk
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor

from . import oracle

PAGES = 32
ACCESS = {"read": READ, "write": WRITE, "fetch": FETCH}


class Bench:
    """Guest memory of a few pages, identical for the model and for the compiled walk."""

    def __init__(self) -> None:
        machine = MachineMemory(512, scatter_seed=5)
        self.vmm = VirtualMachineMonitor(machine, PAGES, PagingMode.SHADOW)
        self.mmu = self.vmm.state.mmu
        for ppn in range(PAGES):
            self.vmm.bring_back(ppn, write=True)
        self.content = machine.content.reshape(-1, 4096)

    def load(self, memory: bytearray) -> None:
        self.content[self.vmm.pmap.frame] = np.frombuffer(memory, np.uint8).reshape(-1, 4096)

    def store(self) -> bytes:
        return bytes(self.content[self.vmm.pmap.frame].tobytes())

    def set_control(self, cpu: oracle.Cpu) -> None:
        mmu = self.vmm.state.mmu
        mmu.cr0 = cpu.pg << 31 | cpu.wp << 16 | 1
        mmu.cr3 = cpu.cr3
        mmu.cr4 = cpu.pse << 4 | cpu.pae << 5 | cpu.la57 << 12 | cpu.smep << 20 | cpu.smap << 21
        mmu.efer = cpu.lma << 10 | cpu.lma << 8 | cpu.nxe << 11
        mmu.cpl = 3 if cpu.user else 0
        mmu.alignment_check = cpu.ac << 18
        mmu.implicit_supervisor = cpu.implicit
        mmu.physical_address_bits = cpu.physical_bits
        mmu.has_1gib_pages = cpu.gigabyte_pages

    def compare(self, memory: bytearray, cpu: oracle.Cpu, access: str, gva: int) -> None:
        """Walk with both; every part of the outcome must agree."""
        self.load(memory)
        self.set_control(cpu)
        before = int(self.vmm.state.mmu.walk_references)
        status = guest_walk(self.vmm.state.mmu, signed64(gva), ACCESS[access])
        expected = oracle.walk(memory, cpu, access, gva)
        mmu = self.vmm.state.mmu
        where = f"{cpu} {access} {gva:#x}"
        if expected.error is not None:
            assert status == TRUE_FAULT, where
            assert (mmu.fault_error, mmu.fault_level) == (expected.error, expected.level), where
        else:
            assert status == OK, where
            assert unsigned64(mmu.walk_gpa) == expected.gpa, where
            assert mmu.walk_page_bytes == expected.size, where
            rights = bool(mmu.walk_user), bool(mmu.walk_writable), bool(mmu.walk_no_execute)
            assert rights == (expected.user, expected.writable, expected.no_execute), where
        assert mmu.walk_references - before == expected.reads, where
        after = bytearray(memory)
        for address, size, value in expected.updates:
            after[address : address + size] = value.to_bytes(size, "little")
        assert self.store() == after, where


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def _entry(rng: random.Random, size: int, level: int) -> int:
    """An entry that is mostly well-formed, pointing to one of the first pages."""
    entry = rng.choice((0x7, 0x7, 0x7, 0x27, 0x67, 0x5, 0x3, 0x1, 0x21, 0x0, 0x6))
    entry |= rng.randrange(PAGES) << 12
    if level > 1 and rng.random() < 0.25:
        entry |= 0x80
        if rng.random() < 0.7:
            entry &= ~(((1 << (9 * level + 3 if size == 8 else 22)) - 1) & ~0xFFF)
    if rng.random() < 0.1:
        entry |= 1 << rng.randrange(size * 8)
    if size == 8 and rng.random() < 0.2:
        entry |= 1 << 63
    return entry


MODES = {
    "off": {"pg": False, "pae": False, "lma": False},
    "32-bit": {"pae": False, "lma": False, "pse": True, "nxe": False},
    "32-bit without PSE": {"pae": False, "lma": False, "pse": False},
    "PAE": {"lma": False},
    "4-level": {},
    "5-level": {"la57": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_random_tables(bench: Bench, mode: str) -> None:
    rng = random.Random(mode)
    base = replace(oracle.Cpu(), **MODES[mode])
    size = 4 if not base.pae else 8
    levels = 2 if not base.pae else 3 if not base.lma else 5 if base.la57 else 4
    for _ in range(1500):
        memory = bytearray(PAGES * 4096)
        root = rng.randrange(PAGES)
        gva = rng.getrandbits(64 if base.lma else 32)
        if base.lma:
            gva = unsigned64(signed64(gva << (7 if base.la57 else 16)) >> (7 if base.la57 else 16))
        # A chain of tables on the way of the address, and noise elsewhere.
        for level in range(levels, 0, -1):
            shift = 12 + (level - 1) * (9 if size == 8 else 10)
            for page in range(PAGES):
                index = (gva >> shift) & (0x1FF if size == 8 else 0x3FF)
                if not base.lma and base.pae and level == 3:
                    index &= 3
                if rng.random() < 0.7 or page == root:
                    at = page * 4096 + index * size
                    entry = _entry(rng, size, level)
                    if base.pae and not base.lma and level == 3:
                        entry &= ~0x1E6
                    memory[at : at + size] = (entry & ((1 << size * 8) - 1)).to_bytes(
                        size, "little"
                    )
        cpu = replace(
            base,
            cr3=root << 12,
            wp=rng.random() < 0.7,
            smep=rng.random() < 0.3,
            smap=rng.random() < 0.3,
            ac=rng.random() < 0.5,
            nxe=base.nxe and rng.random() < 0.8,
            user=rng.random() < 0.5,
            implicit=rng.random() < 0.1,
            physical_bits=rng.choice((36, 40, 46, 52)),
            gigabyte_pages=rng.random() < 0.7,
        )
        bench.compare(memory, cpu, rng.choice(list(ACCESS)), gva)


def test_every_combination_of_rights(bench: Bench) -> None:
    """Leaf and directory rights, and all that CR0, CR4, EFER, CPL and AC make of them."""
    gva = 0x12345678
    leaf_flags = [0x1, 0x3, 0x5, 0x7]
    count = 0
    for leaf, upper, leaf_nx, large in itertools.product(
        leaf_flags, leaf_flags, (0, 1 << 63), (False, True)
    ):
        memory = bytearray(PAGES * 4096)

        def put(page: int, index: int, entry: int, into: bytearray = memory) -> None:
            into[page * 4096 + index * 8 : page * 4096 + index * 8 + 8] = entry.to_bytes(
                8, "little"
            )

        put(0, 0, 1 << 12 | 7)
        put(1, 0, 2 << 12 | 7)
        if large:
            put(2, gva >> 21, 1 << 21 | 0x80 | leaf & upper | leaf_nx)
        else:
            put(2, gva >> 21, 3 << 12 | upper)
            put(3, gva >> 12 & 511, 9 << 12 | leaf | leaf_nx)
        switches = itertools.product((False, True), repeat=6)
        for wp, smep, smap, nxe, ac, user in switches:
            for access in ACCESS:
                cpu = oracle.Cpu(wp=wp, smep=smep, smap=smap, nxe=nxe, ac=ac, user=user)
                bench.compare(memory, cpu, access, gva)
                count += 1
    assert count == 4 * 4 * 2 * 2 * 64 * 3


def test_a_cold_four_level_walk_reads_four_entries(bench: Bench) -> None:
    memory = bytearray(PAGES * 4096)
    for level in range(4):
        memory[level * 4096 : level * 4096 + 8] = ((level + 1) << 12 | 7).to_bytes(8, "little")
    assert oracle.walk(memory, oracle.Cpu(), "read", 0).reads == 4
    bench.compare(memory, oracle.Cpu(), "read", 0)


def test_tables_beyond_memory_read_as_ones(bench: Bench) -> None:
    """The open bus: a present entry of ones has reserved bits, hence a fault with RSVD."""
    bench.load(bytearray(PAGES * 4096))
    bench.set_control(oracle.Cpu(cr3=PAGES << 12))
    assert guest_walk(bench.vmm.state.mmu, 0, READ) == TRUE_FAULT
    assert bench.vmm.state.mmu.fault_error == 9
