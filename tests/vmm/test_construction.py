# SPDX-License-Identifier: Apache-2.0
"""A VMM that cannot be built takes nothing from the machine."""

from __future__ import annotations

import pytest

from memvirt.machine.memory import MachineMemory, MachineMemoryExhausted
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor


@pytest.mark.parametrize("paging", list(PagingMode))
@pytest.mark.parametrize("frames", range(1, 20))
def test_frames_of_a_refused_vm_are_free(paging: PagingMode, frames: int) -> None:
    machine = MachineMemory(frames)
    other = machine.allocate(kind=1, owner=7)  # another VM's, of the same number
    try:
        vmm = VirtualMachineMonitor(machine, 64, paging, vm_id=7)
    except MachineMemoryExhausted:
        assert machine.free_frames == frames - 1
        assert machine.owned_by(7).tolist() == other.tolist()
    else:
        assert paging is not PagingMode.FLAT
        assert frames >= 16
        vmm.power_off()
