# SPDX-License-Identifier: Apache-2.0
"""Addresses of live guests: our walkers' answers are QEMU's own, in every paging mode."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from memvirt.live.address_map import map_live_address, map_range, render_live_map
from memvirt.live.page_states import LivePageState
from memvirt.live.reverse_map import gvas_of_ppn, ppns_of_frame
from memvirt.live.vm import LiveVm, open_kernel_pages
from memvirt.live.walk import GuestWalker

from .conftest import Qemu, stop_in_kernel

pytestmark = pytest.mark.qemu


def qemu_gpa(vm: LiveVm, gva: int) -> int | None:
    """What QEMU says of a gVA."""
    match = re.search(r"gpa: (0x[0-9a-f]+|0)", vm.ask().human(f"gva2gpa {gva:#x}"))
    return int(match[1], 16) if match else None


def qemu_host_address(vm: LiveVm, gpa: int) -> int | None:
    match = re.search(r"\) is (0x[0-9a-f]+)", vm.ask().human(f"gpa2hva {gpa:#x}"))
    return int(match[1], 16) if match else None


def agree(vm: LiveVm, gvas: list[int]) -> int:
    """Compare all of them; the number that is mapped to RAM."""
    walker = GuestWalker(vm, vm.registers())
    kernel, _ = open_kernel_pages()
    mapped = 0
    for gva in gvas:
        ours = map_live_address(vm, walker, gva, kernel)
        theirs = qemu_gpa(vm, gva)
        assert ours.gpa == theirs, render_live_map(ours)
        if ours.gpa is None:
            assert ours.frame is None
            continue
        host_address = qemu_host_address(vm, ours.gpa)
        if ours.frame is None:
            assert host_address is None
        else:
            assert ours.frame.host_address == host_address
            mapped += 1
    if kernel is not None:
        kernel.close()
    return mapped


def interesting(vm: LiveVm) -> list[int]:
    """Addresses around everything a stopped Linux guest points to, and of all kinds of mappings."""
    text = vm.ask().human("info registers")
    values = [int(word, 16) for word in re.findall(r"=\s*([0-9a-f]{16})\b", text)]
    walker = GuestWalker(vm, vm.registers())
    bits = walker.address_bits
    resident = vm.layout.ppns_of(vm.page_states(None).where(LivePageState.PRIVATE))
    chosen = np.random.default_rng(5).choice(resident[resident >= 0], 20, replace=False)
    gvas = [mapping.gva + 5 for ppn in chosen for mapping in gvas_of_ppn(vm, walker, int(ppn))]
    for value in values:
        for near in (value, value + 0x1000, value ^ 0x20_0000, value + (1 << 30)):
            gva = near & ((1 << 64) - 1)
            if gva >> (bits - 1) in (0, (1 << (65 - bits)) - 1):
                gvas.append(gva)
    return gvas


@pytest.fixture
def stopped(request: pytest.FixtureRequest) -> Any:
    """The VM of the named fixture, stopped in its kernel while the test looks."""
    qemu: Qemu = request.getfixturevalue(request.param)
    with qemu.open() as vm:
        stop_in_kernel(vm)
        try:
            yield vm
        finally:
            vm.ask().execute("cont")


@pytest.mark.parametrize("stopped", ["anonymous_vm", "memfd_vm"], indirect=True)
def test_linux_agrees_with_qemu(stopped: LiveVm) -> None:
    gvas = interesting(stopped)
    assert agree(stopped, gvas) > 20
    assert len(gvas) > 60


def test_ram_above_4_gib(memfd_vm: Qemu) -> None:
    """The kernel's direct map of all RAM, sampled: each gPA above the hole is found again."""
    with memfd_vm.open() as vm:
        stop_in_kernel(vm)
        try:
            assert [slot.first_gpa for slot in vm.layout.slots] == [0, 0xC0000, 4 << 30]
            walker = GuestWalker(vm, vm.registers())
            for gpa in (4 << 30, (5 << 30) + 0x1234_5000, (7 << 30) - 0x1000):
                mappings = [mapping.gva for mapping in gvas_of_ppn(vm, walker, gpa >> 12)]
                assert mappings, hex(gpa)
                assert [qemu_gpa(vm, gva) for gva in mappings] == [gpa] * len(mappings)
                assert agree(vm, mappings) == len(mappings)
        finally:
            vm.ask().execute("cont")


@pytest.mark.parametrize(("letter", "mode"), [("2", "32-bit"), ("P", "PAE"), ("n", "paging off")])
def test_modes_before_long_mode(
    paging_guest: Callable[[str], Qemu], letter: str, mode: str
) -> None:
    with paging_guest(letter).open() as vm:
        walker = GuestWalker(vm, vm.registers())
        one = map_live_address(vm, walker, 0x300123, None)
        assert one.guest_mode == mode
        assert one.gpa == 0x300123
        gvas = [
            0x0, 0x1FFFFF, 0x3FFFFF, 0x400000, 0x40000000, 0x40001abc, 0x40002000, 0x40200000,
            0x40400abc, 0x405fffff, 0xC0000004, 0xC0001000, 0xFFFFFFFF,
        ]  # fmt: skip
        if letter == "n":
            gvas = [gva for gva in gvas if gva < 0x400_0000]
        assert agree(vm, gvas) >= 4
        if letter != "n":
            assert walker.translate(0x40000000).gpa == 0x301000
            assert walker.translate(0x40001000).gpa == 0x300000
            assert not walker.translate(0x40001000).writable
            found = {mapping.gva for mapping in gvas_of_ppn(vm, walker, 0x301)}
            assert {0x301000, 0x40000000} <= found
            assert map_live_address(vm, walker, 0xC0000000, None).note.startswith("no RAM")
        with pytest.raises(ValueError, match="32-bit"):
            walker.translate(1 << 32)


@pytest.mark.parametrize("stopped", ["anonymous_vm", "memfd_vm"], indirect=True)
def test_there_and_back(host_state: None, stopped: LiveVm) -> None:
    """gVA -> PFN, and from the PFN back to a page and all addresses that map it.

    Nobody's test of KSM runs meanwhile: the page would be merged with another's.
    """
    kernel, problem = open_kernel_pages()
    if kernel is None:
        pytest.skip(problem)
    with kernel:
        registers = stopped.registers()
        walker = GuestWalker(stopped, registers)
        there = map_live_address(stopped, walker, registers.rip, kernel)
        assert there.frame is not None
        assert there.frame.mpn is not None
        assert there.frame.count == 1
        assert ppns_of_frame(stopped, there.frame.mpn) == [there.frame.ppn]
        gvas = [mapping.gva for mapping in gvas_of_ppn(stopped, walker, there.frame.ppn)]
        assert registers.rip & ~0xFFF in gvas
        assert len(gvas) >= 2  # the kernel's text, and its direct map
        assert all(qemu_gpa(stopped, gva) == there.frame.ppn << 12 for gva in gvas)


@pytest.mark.parametrize("stopped", ["anonymous_vm"], indirect=True)
def test_ranges_are_the_sum_of_their_pages(stopped: LiveVm) -> None:
    registers = stopped.registers()
    walker = GuestWalker(stopped, registers)
    first = (registers.rip & ~0x1FFFFF) - 0x40_0000
    end = first + 0x100_0000
    runs = list(map_range(stopped, walker, first, end, None))
    assert sum(run.bytes for run in runs) == end - first
    for run in runs:
        for gva in (run.gva, run.gva + run.bytes - 1):
            expected = None if run.gpa is None else run.gpa + (gva - run.gva)
            assert qemu_gpa(stopped, gva) == expected
        if run.gpa is not None:
            assert sum(run.states.values()) == run.bytes >> 12


def test_an_unmapped_half_of_the_address_space_is_skipped(memfd_vm: Qemu) -> None:
    with memfd_vm.open() as vm:
        walker = GuestWalker(vm, vm.registers())
        runs = map_range(vm, walker, 1 << 46, (1 << 64) - (1 << 46), None)
        first = next(runs)
        assert first.gpa is None
        assert first.bytes >= 1 << 45


def test_a_walk_reads_no_holes(host_state: None, anonymous_vm: Qemu) -> None:
    """Whatever is asked, QEMU has no page more than before."""
    with anonymous_vm.open() as vm:
        stop_in_kernel(vm)
        try:
            before = vm.page_states(None).state.copy()
            walker = GuestWalker(vm, vm.registers(), cr3=255 << 20)  # tables of nobody
            for gva in range(0, 1 << 47, 1 << 40):
                walker.translate(gva)
            agree(vm, interesting(vm))
            assert (vm.page_states(None).state == before).all()
        finally:
            vm.ask().execute("cont")
