# SPDX-License-Identifier: Apache-2.0
"""Flat paging: no virtualization. All of guest memory lies in one run of frames.

The processor's own MMU walks the guest's tables; the VMM is asked only where the processor itself
needs guest memory (descriptor tables, stacks). It is what shadow and nested paging are compared
with: the same guest must see the same.
"""

from __future__ import annotations

import numpy as np

from memvirt.address import (
    GuestVirtualAddress,
    MachineAddress,
    MachinePageNumber,
    MpnArray,
    PhysicalPageNumber,
    PpnArray,
)
from memvirt.compiled import compiled
from memvirt.machine.memory import FrameKind, MachineMemory
from memvirt.mmu.access import OK, READ
from memvirt.mmu.entry import USER, WRITABLE
from memvirt.mmu.guest_walk import guest_walk
from memvirt.mmu.second_level import MISS, pmap_walk
from memvirt.vmm.pmap import PageState, Pmap
from memvirt.vmm.vmm_state import VmmState

from .mode import PagingMode


@compiled
def flat_access(vmm: VmmState, gva: GuestVirtualAddress, access: int) -> int:
    """One access: guest tables, then the identity. OK or a status."""
    mmu = vmm.mmu
    status = guest_walk(mmu, gva, access)
    if status != OK:
        return int(status)
    mmu.out_machine_address = pmap_walk(mmu, mmu.walk_gpa, READ)
    if mmu.out_machine_address == MISS:
        mmu.out_machine_address = MachineAddress(-1)
    mmu.out_permissions = WRITABLE | USER
    return OK


class FlatPaging:
    """See the module docstring. Raises MachineMemoryExhausted without a free run of frames."""

    mode = PagingMode.FLAT
    remaps = False
    has_large_pages = False
    table_frames = 0

    def __init__(self, machine: MachineMemory, pmap: Pmap, vm_id: int) -> None:
        first = machine.allocate_contiguous(pmap.pages, kind=FrameKind.GUEST, owner=vm_id)
        mpns = MpnArray(np.arange(first, first + pmap.pages, dtype=np.uint32))
        machine.guest_ppn[mpns] = np.arange(pmap.pages)
        pmap.frame[:] = mpns
        pmap.set_states(slice(None), PageState.PRIVATE)

    def invalidate(self, ppns: PpnArray) -> int:
        raise ValueError("flat memory has no pages to manage: use shadow or nested paging")

    def forget_guest_tables(self) -> None:
        """Nothing derives from the guest's tables but the processor's own translations."""

    def release_table_below(self, first_ppn: PhysicalPageNumber) -> MachinePageNumber | None:
        return None
