# SPDX-License-Identifier: Apache-2.0
"""Every access the walkers can be asked for, in shadow and in nested mode, against the model.

As kvm-unit-tests' ``access`` test does: each flag of each entry, each control bit and each kind of
access is one dimension; a counter runs through all combinations (``paths``). Two accesses are made
in a row, so that the second meets what the first left: accessed and dirty bits, a shadow entry, a
nested entry. Compared are the fault with its error code and level, the machine address, every
entry after each access, and the rights a processor may cache.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from numba import njit

from memvirt.machine.memory import MachineMemory
from memvirt.mmu.access import FLUSH_AND_RETRY, OK, TRUE_FAULT
from memvirt.mmu.entry import NO_EXECUTE, USER, WRITABLE
from memvirt.vmm.check import check_machine
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.paging.shadow_table import zap_all
from memvirt.vmm.translate import access, note_flush

from . import oracle
from .paths import (
    ACCESSES,
    DATA_PPN,
    FETCH,
    KINDS,
    OFFSET,
    READ,
    SHAPES,
    WRITE,
    A,
    Array,
    Cases,
    D,
    Expected,
    Shape,
    enumerate_cases,
    expect,
    memory_of,
    paths,
)

PAGES = 32
CHUNK = 200  # paths run at a time
PAGING = [PagingMode.SHADOW, PagingMode.NESTED]
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
MODE = pytest.mark.parametrize("paging", PAGING, ids=lambda paging: paging.name.lower())


@njit
def _run(
    vmm: Any, wide: Any, narrow: Any, at: Any, is_wide: bool, in_shadow: bool, gva: int,
    path: Any, cr0: Any, cr4: Any, efer: Any, ac: Any, cpl: Any, kind: Any, out: Any, after: Any
) -> None:  # fmt: skip
    """Two accesses of each case: status, address, error, level and rights into ``out``.

    ``at`` has the index of each entry of the path in machine memory, as 64- or 32-bit words.
    """
    mmu = vmm.mmu
    for i in range(path.shape[0]):
        for k in range(path.shape[1]):
            if is_wide:
                wide[at[k]] = path[i, k]
            else:
                narrow[at[k]] = path[i, k]
        if in_shadow:
            zap_all(vmm)
            note_flush(vmm)
        mmu.cr0, mmu.cr4, mmu.efer, mmu.alignment_check = cr0[i], cr4[i], efer[i], ac[i]
        for j in range(2):
            mmu.cpl = cpl[i, j]
            status = FLUSH_AND_RETRY
            for _ in range(8):
                status = access(vmm, gva, kind[i, j])
                if status != FLUSH_AND_RETRY:
                    break
                note_flush(vmm)
            out[i, j, 0] = status
            out[i, j, 1] = mmu.out_machine_address
            out[i, j, 2] = mmu.fault_error
            out[i, j, 3] = mmu.fault_level
            out[i, j, 4] = mmu.out_permissions
            for k in range(path.shape[1]):
                after[i, j, k] = wide[at[k]] if is_wide else np.int64(narrow[at[k]])


class Subject:
    """A VM whose pages are all private, and the driver above on it."""

    def __init__(self, paging: PagingMode) -> None:
        self.machine = MachineMemory(2048, scatter_seed=5)
        self.vmm = VirtualMachineMonitor(self.machine, PAGES, paging)
        self.in_shadow = paging is PagingMode.SHADOW
        for ppn in range(PAGES):
            self.vmm.bring_back(ppn, write=True)
        self.words = self.machine.content.view(np.int64)
        self.halves = self.machine.content.view(np.uint32)

    def frame(self, ppn: int) -> int:
        return int(self.vmm.pmap.frame[ppn])

    def run(self, cases: Cases) -> tuple[Array, Array]:
        """(status, machine address, error, level, rights) and entries after, by case and access."""
        shape, count = cases.shape, len(cases)
        per_page = 512 if shape.wide else 1024
        at = np.array(
            [
                self.frame(shape.table_ppn(level)) * per_page + shape.slot(level)
                for level in shape.levels
            ]
        )
        mmu = self.vmm.state.mmu
        mmu.cr3 = shape.table_ppn(shape.levels[0]) << 12
        cr0 = (1 << 31 | 1) | cases.wp.astype(np.int64) << 16
        cr4 = cases.smep.astype(np.int64) << 20 | cases.smap.astype(np.int64) << 21
        cr4 |= 1 << 4 | shape.pae << 5 | shape.la57 << 12
        efer = cases.nxe.astype(np.int64) << 11 | shape.lma << 10 | shape.lma << 8
        out = np.zeros((count, 2, 5), np.int64)
        after = np.zeros((count, 2, len(shape.levels)), np.int64)
        _run(
            self.vmm.state, self.words, self.halves, at, shape.wide, self.in_shadow, shape.gva,
            cases.path, cr0, cr4, efer, cases.ac.astype(np.int64) << 18,
            cases.user.astype(np.int64) * 3, cases.kind.astype(np.int64), out, after,
        )  # fmt: skip
        return out, after


def describe(cases: Cases, i: int, j: int) -> str:
    """One case for people."""
    entries = " ".join(f"{entry & (1 << 64) - 1:#x}" for entry in cases.path[i].tolist())
    controls = {name: int(getattr(cases, name)[i]) for name in ("wp", "smep", "smap", "ac", "nxe")}
    both = [f"{'user' if u else 'supervisor'} {KINDS[k]}" for u, k in
            zip(cases.user[i], cases.kind[i], strict=True)]  # fmt: skip
    return f"{cases.shape.name} [{entries}] {controls} {both}, access {j + 1}"


def _rights_allow(cases: Cases, rights: Array, user: Array, kind: int) -> Array:
    """Whether a processor that has cached the rights makes a further access by itself."""
    user_page, writable = rights & USER != 0, rights & WRITABLE != 0
    no_execute = rights & NO_EXECUTE != 0
    if kind == FETCH:
        supervisor = ~user_page | (cases.smep == 0)
    else:
        supervisor = ~user_page | (cases.smap == 0) | (cases.ac != 0)
    granted = np.where(user != 0, user_page, supervisor)
    if kind == WRITE:
        granted &= writable
    return np.asarray(granted & ~(no_execute & (kind == FETCH)))


def compare(subject: Subject, cases: Cases) -> int:
    """Run cases and hold every outcome against the model; returns the number of accesses."""
    out, after = subject.run(cases)
    path = cases.path
    machine_address = subject.frame(DATA_PPN) << 12 | OFFSET
    for j in range(2):
        user, kind = cases.user[:, j], cases.kind[:, j]
        expected = expect(cases, path, user, kind)
        status, address, error, level, rights = out[:, j].T
        wrong = status != np.where(expected.allowed, OK, TRUE_FAULT)
        wrong |= expected.allowed & (address != machine_address)
        wrong |= ~expected.allowed & ((error != expected.error) | (level != expected.level))
        wrong |= (after[:, j] != expected.path).any(axis=1)
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            found = f"{out[i, j].tolist()}, entries {[hex(e) for e in after[i, j].tolist()]}"
            right = f"error {expected.error[i]} at level {expected.level[i]}, entries "
            right += str([hex(entry) for entry in expected.path[i].tolist()])
            raise AssertionError(f"{describe(cases, i, j)}: found {found}, expected {right}")
        _compare_rights(cases, j, expected, rights)
        path = expected.path
    return 2 * len(cases)


def _compare_rights(cases: Cases, j: int, expected: Expected, rights: Array) -> None:
    """What may be cached of an access needs no walk: allowed, with nothing left to write back."""
    user = cases.user[:, j]
    for kind in (READ, WRITE, FETCH):
        again = expect(cases, expected.path, user, np.full(len(cases), kind))
        free = again.allowed & (again.path == expected.path).all(axis=1)
        wrong = expected.allowed & _rights_allow(cases, rights, user, kind) & ~free
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            text = f"{describe(cases, i, j)}: the rights {rights[i]:#x} let a {KINDS[kind]} pass"
            raise AssertionError(text)


def run_all(paging: PagingMode, shape: Shape, *, varied: int, all_pairs: bool) -> int:
    subject, rows, total = Subject(paging), paths(shape, varied), 0
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        total += compare(subject, enumerate_cases(shape, part, all_pairs=all_pairs))
    assert check_machine(subject.machine, [subject.vmm]) == []
    return total


@SHAPE
@MODE
def test_every_access(paging: PagingMode, shape: Shape) -> None:
    """The leaf and one entry above it take all their states; second accesses in turn."""
    assert run_all(paging, shape, varied=1, all_pairs=False) >= 2 * 36 * 12


@pytest.mark.acceptance
@SHAPE
@MODE
def test_every_access_with_every_second(paging: PagingMode, shape: Shape) -> None:
    """The leaf and two entries above it take all their states; every pair of accesses."""
    run_all(paging, shape, varied=2, all_pairs=True)


@SHAPE
def test_the_fast_model_is_the_slow_one(shape: Shape) -> None:
    """A random sample of the enumeration, both accesses, by the model that reads memory."""
    rng = random.Random(shape.name)
    rows = paths(shape, 2)
    rows = rows[rng.sample(range(len(rows)), min(200, len(rows)))]
    cases = enumerate_cases(shape, rows, all_pairs=False)
    chosen = np.array(rng.sample(range(len(cases)), min(2000, len(cases))))
    cases = cases.part(chosen)
    path, seen = cases.path, set()
    for j in range(2):
        expected = expect(cases, path, cases.user[:, j], cases.kind[:, j])
        for i in range(len(cases)):
            memory = memory_of(shape, path[i], PAGES)
            kind = KINDS[int(cases.kind[i, j])]
            walk = oracle.walk(memory, cases.cpu(i, j), kind, shape.gva)
            where = describe(cases, i, j)
            seen.add(walk.error)
            assert expected.error[i] == (-1 if walk.error is None else walk.error), where
            if walk.error is not None:
                assert expected.level[i] == walk.level, where
            else:
                assert walk.gpa == DATA_PPN << 12 | OFFSET, where
            for address, size, value in walk.updates:
                memory[address : address + size] = value.to_bytes(size, "little")
            assert memory == memory_of(shape, expected.path[i], PAGES), where
        path = expected.path
    assert None in seen
    assert len(seen) > 8


def test_the_enumeration_covers_what_it_says() -> None:
    """Each state of accessed and dirty bits, each fault, each pair of accesses occurs."""
    shape = next(each for each in SHAPES if each.name == "4-level, 4 KiB")
    rows = paths(shape, 1)
    for position in range(3):
        assert {int(entry) & A for entry in rows[:, position]} == {0, A}
    assert {int(entry) & (A | D) for entry in rows[:, 3]} == {0, A, D, A | D}
    cases = enumerate_cases(shape, paths(shape, 1), all_pairs=False)
    pairs = set(zip(*(cases.user.T.tolist() + cases.kind.T.tolist()), strict=True))
    assert len(pairs) == len(ACCESSES) ** 2
    errors = set(expect(cases, cases.path, cases.user[:, 0], cases.kind[:, 0]).error.tolist())
    # P with each access and mode, not present, and RSVD (which implies P).
    assert errors >= {-1, 0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 16, 17, 20, 21, 25, 29}
    assert len(cases) > 200_000


@pytest.mark.parametrize("damage", [1, 2, 3, 4])
def test_a_wrong_walker_would_be_noticed(damage: int) -> None:
    """The comparison itself can fail: the same cases, one outcome changed."""
    subject = Subject(PagingMode.NESTED)
    shape = SHAPES[0]
    cases = enumerate_cases(shape, paths(shape, 1), all_pairs=False)
    compare(subject, cases)
    run = subject.run

    def wrong(cases: Cases) -> tuple[Array, Array]:
        out, after = run(cases)
        if damage == 4:
            after[77, 1, 1] ^= A
        else:
            allowed = out[:, 0, 0] == OK
            i = int(np.flatnonzero(allowed if damage == 1 else ~allowed)[5])
            out[i, 0, damage] ^= 1
        return out, after

    subject.run = wrong  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="expected error"):
        compare(subject, cases)
