# SPDX-License-Identifier: Apache-2.0
"""A corrupt nested table ends the VM with a report; it can never be waited out."""

from __future__ import annotations

import pytest

from memvirt import EndReason, Machine, VirtualMachine
from memvirt.images import image_path
from memvirt.mmu.access import MISCONFIGURED, READ, WRITE
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.paging.nested import nested_entry_at
from memvirt.vmm.paging.nested_paging import NestedPaging
from memvirt.vmm.translate import access

from .driver import Driver

_MEMORY_TYPE, _RESERVED_TYPE = 7 << 3, 2 << 3  # SDM vol. 3C, table 29-6: types 2, 3, 7 are reserved


def corrupt(vmm: VirtualMachineMonitor) -> int:
    """Give every present entry of the last level a reserved memory type; returns how many."""
    assert isinstance(vmm.page_tables, NestedPaging)
    vmm.page_tables.nested_cache["tag"] = 0
    words = vmm.machine.content.view("int64")
    corrupted = 0
    for ppn in range(vmm.pmap.pages):
        at = int(nested_entry_at(vmm.state, ppn << 12, 1, False))
        index = (at - vmm.machine.host_address) // 8
        if at and words[index]:
            words[index] = int(words[index]) & ~_MEMORY_TYPE | _RESERVED_TYPE
            corrupted += 1
    return corrupted


@pytest.mark.parametrize("kind", [READ, WRITE])
def test_the_access_says_so(kind: int) -> None:
    driver = Driver(PagingMode.NESTED)
    driver.set_entry(5, (20 << 12) | 7)
    driver.write(5 << 12, 1)
    assert corrupt(driver.vmm) > 0
    for _ in range(3):
        assert access(driver.vmm.state, 5 << 12, kind) == MISCONFIGURED


def test_the_vm_ends_with_a_report() -> None:
    with VirtualMachine(Machine("64M"), memory="16M", paging="nested") as vm:
        vm.load(image_path("bundled"), append="workload=fill")
        assert vm.run_quantum(1_000_000) is None
        assert corrupt(vm.vmm) > 0
        vm.vmm.begin_sample([0])  # takes translations back, so the processor asks again
        outcome = vm.run(timeout=60)
        assert outcome.reason is EndReason.MISCONFIGURED, outcome
        assert outcome.exit_status == 3
        assert outcome.detail.startswith("the entry of level 1 for gPA 0x"), outcome
