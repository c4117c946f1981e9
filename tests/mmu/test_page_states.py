# SPDX-License-Identifier: Apache-2.0
"""Guest tables and pages in every state the host can put them in: the guest cannot tell.

One path of 4-level tables. The host shares, swaps, compresses away or samples any one of its pages
or the page it leads to; then the guest makes two accesses. Faults, entries and content are those
of the model, which knows of no host.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from memvirt.mmu.access import FLUSH_AND_RETRY, NEED_FRAMES, NEED_PAGE, OK, TRUE_FAULT
from memvirt.vmm.check import check_machine
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.pmap import PageState
from memvirt.vmm.translate import access, note_flush

from . import oracle
from .paths import DATA_PPN, KINDS, OFFSET, SHAPES, A, D, P, U, W, memory_of
from .test_access_enumeration import PAGES, Subject

SHAPE = next(shape for shape in SHAPES if shape.name == "4-level, 4 KiB")
STATES: dict[str, Callable[[VirtualMachineMonitor, int], object]] = {
    "private": lambda vmm, ppn: None,
    "shared": lambda vmm, ppn: vmm.make_shared(ppn),
    "swapped": lambda vmm, ppn: vmm.unmap([ppn]),
    "sampled": lambda vmm, ppn: vmm.begin_sample([ppn]),
    "moved": lambda vmm, ppn: vmm.move([ppn]),
}
LEAVES = [P | W | U | bits for bits in (0, A, A | D, D)] + [P | U, P | U | A, P | W, 0, W]


def attempt(vmm: VirtualMachineMonitor, gva: int, kind: int) -> tuple[str, int]:
    """One access with all that the run loop does: ("ok", machine address) or ("fault", error)."""
    for _ in range(32):
        status = access(vmm.state, gva, kind)
        if status == OK:
            return "ok", int(vmm.state.mmu.out_machine_address)
        if status == TRUE_FAULT:
            return "fault", int(vmm.state.mmu.fault_error)
        if status == FLUSH_AND_RETRY:
            note_flush(vmm.state)
        elif status == NEED_FRAMES:
            vmm.reserve.refill()
        elif status == NEED_PAGE:
            vmm.bring_back(int(vmm.state.exit_ppn), write=bool(vmm.state.exit_write))
        else:
            raise AssertionError(f"status {status}")
    raise AssertionError("an access that never ends")


@pytest.mark.parametrize("paging", [PagingMode.SHADOW, PagingMode.NESTED])
@pytest.mark.parametrize("state", STATES)
def test_the_host_is_not_to_be_seen(paging: PagingMode, state: str) -> None:
    pages = [SHAPE.table_ppn(level) for level in SHAPE.levels] + [DATA_PPN]
    for number, (ppn, leaf) in enumerate(itertools.product(pages, LEAVES)):
        vmm = Subject(paging).vmm
        cpu = oracle.Cpu(cr3=SHAPE.table_ppn(4) << 12, user=bool(number % 2))
        mmu = vmm.state.mmu
        mmu.cr0, mmu.cr4, mmu.efer, mmu.cr3 = 0x80010001, 0x20, 0xD00, cpu.cr3
        mmu.cpl = 3 * cpu.user
        entries = [SHAPE.base(level) | P | W | U for level in SHAPE.levels]
        entries[-1] = SHAPE.base(1) | leaf
        memory = memory_of(SHAPE, np.array(entries, np.int64), PAGES)
        memory[(DATA_PPN << 12) + OFFSET] = 0x5A
        vmm.write_physical(0, bytes(memory))
        for first, second in itertools.product(range(3), repeat=2):
            for kind in (first, second):
                if vmm.pmap.state_of(ppn) is PageState.PRIVATE:
                    STATES[state](vmm, ppn)
                expected = oracle.walk(memory, cpu, KINDS[kind], SHAPE.gva)
                outcome, value = attempt(vmm, SHAPE.gva, kind)
                where = f"PPN {ppn} {state}, leaf {leaf:#x}, {KINDS[first]}, {KINDS[second]}"
                if expected.error is None:
                    assert outcome == "ok", where
                    assert vmm.machine.content[value] == 0x5A, where
                else:
                    assert (outcome, value) == ("fault", expected.error), where
                for address, size, entry in expected.updates:
                    memory[address : address + size] = entry.to_bytes(size, "little")
                assert vmm.read_physical(0, PAGES << 12) == memory, where
        assert check_machine(vmm.machine, [vmm]) == []
