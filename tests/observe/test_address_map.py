# SPDX-License-Identifier: Apache-2.0
"""The map says what the processor would do, by the walker's own rules."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from memvirt import Machine, VirtualMachine
from memvirt.mmu.access import FETCH, OK, READ, TRUE_FAULT, WRITE
from memvirt.mmu.guest_walk import guest_walk
from memvirt.observe.address_map import AddressMap, map_address, render
from memvirt.observe.snapshot import load_snapshot, save_snapshot
from memvirt.observe.view import live_view
from memvirt.vmm.content import COMPRESS, SWAP
from memvirt.vmm.eviction import EvictionOrder
from memvirt.vmm.pmap import PageState
from memvirt.vmm.stores.backing import BackingStoreError

from .vms import LONG_MODE, NX, PS, ROOT, P, U, W, four_level_vm, set_registers, write_entry

_TO_SWAP = EvictionOrder((SWAP,))
_KINDS = {"read": READ, "write": WRITE, "fetch": FETCH}


def _map(vm: VirtualMachine, gva: int) -> AddressMap:
    return map_address(live_view(vm), gva)


def test_a_compressed_page_is_its_own_not_a_frame_of_that_number(tmp_path: Path) -> None:
    """Also the table that leads to it; and another VM's frames have the numbers of their slots."""
    machine = Machine("64M")
    other = VirtualMachine(machine, memory="16M", name="other")
    for ppn in range(40):
        other.vmm.write_physical(ppn << 12, b"SECRET OF ANOTHER VM" * 100)
    vm = four_level_vm(machine)
    assert vm.vmm.unmap([13, 20]).placed == {COMPRESS: 2}
    save_snapshot(vm, tmp_path / "vm")
    for view in (live_view(vm), load_snapshot(tmp_path / "vm")):
        assert view.state_of(20) is PageState.COMPRESSED
        assert view.read_page(20).startswith(b"my own data")
        assert view.frame_of(20) is None
        result = map_address(view, 5)
        assert (result.ppn, result.state, result.mpn) == (20, "compressed", None)
        assert result.guest[-1].mpn is None
        assert result.faults == {"read": None, "write": None, "fetch": None}
        assert "kept aside" in render(result)


def test_swapped_and_shared_pages_and_both_stores_at_once(tmp_path: Path) -> None:
    vm = four_level_vm()
    vm.vmm.write_physical(21 << 12, b"to be swapped")
    vm.vmm.write_physical(22 << 12, b"shared")
    vm.vmm.unmap([20])
    assert vm.vmm.unmap([21], _TO_SWAP).placed == {SWAP: 1}
    vm.vmm.make_shared(22)
    assert int(live_view(vm).frame[20]) == int(live_view(vm).frame[21])  # the same slot number
    save_snapshot(vm, tmp_path / "vm")
    for view in (live_view(vm), load_snapshot(tmp_path / "vm")):
        assert view.read_page(20).startswith(b"my own data")
        assert view.read_page(21).startswith(b"to be swapped")
        assert view.read_page(22).startswith(b"shared")
        assert sorted(view.kept) == [20, 21]


def test_a_page_that_cannot_be_read_is_said_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = four_level_vm()
    assert vm.vmm.unmap([13], _TO_SWAP).placed == {SWAP: 1}

    def fail(slot: int) -> bytes:
        raise BackingStoreError("disk: Input/output error")

    monkeypatch.setattr(vm.vmm.contents.stores[SWAP], "read", fail)
    save_snapshot(vm, tmp_path / "vm")
    for view, words in (
        (live_view(vm), "Input/output error"),
        (load_snapshot(tmp_path / "vm"), "PPN 0xd is not in the snapshot"),
    ):
        result = map_address(view, 0)
        assert len(result.guest) == 3
        assert result.faults == {}
        assert result.gpa is None
        assert words in render(result)


def test_ps_in_a_pml4e_is_a_reserved_bit() -> None:
    vm = four_level_vm()
    write_entry(vm, 10, 0, 11 << 12 | P | W | PS)
    result = _map(vm, 0x1000)
    assert (result.gpa, result.page_bytes, len(result.guest)) == (None, None, 1)
    assert result.faults == {"read": 9, "write": 0xB, "fetch": 0x19}
    assert "reserved bit is set in the PML4E" in render(result)
    assert "#PF(0x9)" in render(result)


def test_tables_beyond_memory_are_the_open_bus() -> None:
    vm = four_level_vm()
    set_registers(vm, {"cr3": 0x4000_0000})
    result = _map(vm, 0)
    assert result.guest[0].value == (1 << 64) - 1
    assert result.guest[0].mpn is None
    assert result.faults["read"] == 9
    assert "open bus" in result.note


_MODES = {
    "2-level": {"cr0": 0x8000_0001, "cr4": 0x10, "efer": 0, "cr3": ROOT},
    "2-level, no PSE": {"cr0": 0x8001_0001, "cr4": 0x00, "efer": 0, "cr3": ROOT},
    "PAE": {"cr0": 0x8001_0001, "cr4": 0x20, "efer": 0x800, "cr3": ROOT + 0x20},
    "PAE, no NX": {"cr0": 0x8000_0001, "cr4": 0x20, "efer": 0, "cr3": ROOT},
    "4-level": LONG_MODE,
    "4-level, SMEP, SMAP": {**LONG_MODE, "cr4": 0x30_0020},
    "5-level": {**LONG_MODE, "cr4": 0x1020},
}
_FLAGS = (
    P,
    P | W,
    P | U,
    P | W | U,
    P | W | U | PS,
    P | W | U | PS | 0x2000,
    0,
    P | W | U | 1 << 8,
)
_HIGH = (0, 0, NX, 1 << 51, 1 << 40, 1 << 62)


@pytest.mark.parametrize("mode", _MODES)
def test_the_map_agrees_with_the_walker(mode: str) -> None:
    """Random tables, some of them beyond memory: the same address, or the same fault."""
    draw = random.Random(mode)
    registers = _MODES[mode]
    wide = bool(registers["cr4"] & 0x20)
    size, slots = (8, 512) if wide else (4, 1024)
    vm = four_level_vm(paging="shadow")  # where the walker looks guest tables up in the pmap
    for ppn in (22, 0x200, 0x202):  # what entries may point to, with bit 13 set or not
        vm.vmm.write_physical(ppn << 12, b"\0")
    set_registers(vm, registers)
    for ppn, slot in itertools.product(range(10, 16), range(slots)):
        target = draw.choice((*range(10, 16), *range(10, 16), 20, 0x200, 0x3_0000)) << 12
        entry = target | draw.choice((*_FLAGS, P | W | U, P | W | U))
        if wide and draw.random() < 0.2:
            entry |= draw.choice(_HIGH)
        write_entry(vm, ppn, slot, entry & ((1 << 8 * size) - 1), size)
    reached: set[tuple[int, int | None]] = set()
    mmu = vm.vmm.state.mmu
    for cpl, flags in ((0, 2), (3, 2), (0, 0x40002)):
        vm.processor.set("rflags", flags)
        for name in ("cr0", "cr3", "cr4", "efer"):
            setattr(mmu, name, registers[name])
        mmu.cpl, mmu.alignment_check = cpl, flags & 1 << 18
        for _ in range(300):
            bits = 31 if "level" not in mode or mode.startswith("2") else 46
            gva = draw.getrandbits(bits)
            view = live_view(vm)
            view = replace(view, translation=replace(view.translation, privilege_level=cpl))
            result = map_address(view, gva)
            for name, kind in _KINDS.items():
                status = guest_walk(mmu, gva, kind, False)
                assert status in (OK, TRUE_FAULT)
                expected = None if status == OK else int(mmu.fault_error)
                assert result.faults[name] == expected, (hex(gva), name, render(result))
                if status == OK:
                    assert result.gpa == mmu.walk_gpa
                    assert result.page_bytes == mmu.walk_page_bytes
                reached.add((len(result.guest), expected))
    assert len(reached) >= 10


def test_names_are_printed_so_that_no_terminal_obeys_them() -> None:
    vm = four_level_vm()
    vm.name = "\x1b[2Jevil\n"
    text = render(_map(vm, 0))
    assert "\x1b" not in text
    assert text.startswith("\\x1b[2Jevil\\n: 4-level")
