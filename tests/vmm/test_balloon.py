# SPDX-License-Identifier: Apache-2.0
"""Pages given up to the balloon: whatever they held is freed, and nothing of it comes back."""

from __future__ import annotations

import numpy as np
import pytest

from memvirt.machine.memory import MachineMemory
from memvirt.vmm.balloon import BalloonedPages
from memvirt.vmm.check import check_machine
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.pmap import PageState
from memvirt.vmm.stores.held_pages import HeldPages

from .driver import PRESENT, USER, WRITABLE, Driver, PageFault

MODES = [PagingMode.SHADOW, PagingMode.NESTED]
DATA_PPN = 16


def ppns(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("paging", MODES)
def test_every_state_is_let_go(paging: PagingMode) -> None:
    machine = MachineMemory(600)
    store = HeldPages()
    vmm = VirtualMachineMonitor(machine, 64, paging, backing=store)
    other = VirtualMachineMonitor(machine, 64, paging, vm_id=1)
    balloon = BalloonedPages(vmm)
    for ppn in (1, 2, 3, 4):
        vmm.write_physical(ppn << 12, b"secret")
    vmm.unmap([1])
    shared = vmm.make_shared(2)
    assert vmm.share(3, shared)
    before = machine.free_frames
    assert balloon.give_up(ppns(1, 2, 3, 4, 5)).all()
    assert machine.free_frames == before + 2  # the shared frame, and PPN 4's
    assert len(store) == 0
    assert balloon.ballooned == 5
    assert not balloon.give_up(ppns(1, 2)).any()  # given up already
    assert check_machine(machine, [vmm, other]) == []
    for ppn in (1, 2, 3, 4):
        assert vmm.read_page(ppn) == bytes(4096)
    assert balloon.ballooned == 5  # a look does not bring a page back
    vmm.write_physical(1 << 12, b"x")
    assert (balloon.ballooned, balloon.touched) == (4, 1)
    assert balloon.take_back(ppns(1, 2, 9)).tolist() == [False, True, False]
    assert balloon.ballooned == 3
    assert vmm.pmap.state_of(2) is PageState.UNMAPPED
    assert check_machine(machine, [vmm, other]) == []
    vmm.power_off()
    other.power_off()
    assert machine.free_frames == machine.frames


@pytest.mark.parametrize("paging", MODES)
def test_a_frame_shared_with_others_stays_theirs(paging: PagingMode) -> None:
    machine = MachineMemory(600)
    vmm, other = (VirtualMachineMonitor(machine, 64, paging, vm_id=i) for i in range(2))
    for each in (vmm, other):
        each.write_physical(8 << 12, b"common")
    assert other.share(8, vmm.make_shared(8))
    BalloonedPages(vmm).give_up(ppns(8))
    assert other.read_physical(8 << 12, 6) == b"common"
    assert check_machine(machine, [vmm, other]) == []


@pytest.mark.parametrize("paging", MODES)
def test_a_mapped_page_reads_as_zeroes_once_given_up(paging: PagingMode) -> None:
    driver = Driver(paging)
    balloon = BalloonedPages(driver.vmm)
    driver.set_entry(0, DATA_PPN << 12 | PRESENT | WRITABLE | USER)
    driver.write(8, 0x1234)
    assert balloon.give_up(ppns(DATA_PPN)).all()
    assert check_machine(driver.machine, [driver.vmm]) == []
    assert driver.read(8) == 0
    assert (balloon.ballooned, balloon.touched) == (0, 1)
    driver.write(8, 0x5678)
    assert driver.read(8) == 0x5678
    assert check_machine(driver.machine, [driver.vmm]) == []


@pytest.mark.parametrize("paging", MODES)
@pytest.mark.parametrize("unmapped_before", [False, True])
def test_a_page_table_given_up_maps_nothing_any_more(
    paging: PagingMode, unmapped_before: bool
) -> None:
    """Only a broken guest does this. Its own accesses fault, and no shadow entry survives."""
    driver = Driver(paging)
    driver.set_entry(0, DATA_PPN << 12 | PRESENT | WRITABLE | USER)
    driver.write(8, 0x1234)
    if unmapped_before:
        driver.vmm.unmap([3])
    assert BalloonedPages(driver.vmm).give_up(ppns(3)).all()  # the page table of page 0
    assert check_machine(driver.machine, [driver.vmm]) == []
    with pytest.raises(PageFault):
        driver.read(8)
    assert driver.vmm.read_physical((DATA_PPN << 12) + 8, 2) == b"\x34\x12"


@pytest.mark.parametrize("ppn", [-1, 64, 1 << 40])
def test_pages_beyond_memory(ppn: int) -> None:
    vmm = VirtualMachineMonitor(MachineMemory(400), 64, PagingMode.NESTED)
    balloon = BalloonedPages(vmm)
    for ask in (balloon.give_up, balloon.take_back):
        with pytest.raises(IndexError, match="beyond the VM's 64"):
            ask(ppns(1, ppn))
    assert balloon.ballooned == 0


def test_flat_memory_gives_nothing() -> None:
    vmm = VirtualMachineMonitor(MachineMemory(64), 64, PagingMode.FLAT)
    assert BalloonedPages(vmm).give_up(ppns(1, 2)).tolist() == [False, False]
