# SPDX-License-Identifier: Apache-2.0
"""How compiled code finds the arrays of a new VMM."""

from __future__ import annotations

from memvirt.address import PAGE_SHIFT
from memvirt.machine.memory import MachineMemory
from memvirt.mmu.host_ranges import host_address

from .pmap import Pmap
from .vmm_state import VmmState

PHYSICAL_ADDRESS_BITS = 40


def set_up_state(
    state: VmmState, machine: MachineMemory, pmap: Pmap, paging: int, vm_id: int
) -> None:
    """Tell compiled code where machine memory and the pmap are.

    Raises ValueError for machine memory beyond the width of a physical address.
    """
    if machine.frames > 1 << (PHYSICAL_ADDRESS_BITS - PAGE_SHIFT):
        raise ValueError(f"machine memory of {machine.frames} frames: at most 1 TiB has addresses")
    mmu = state.mmu
    state.paging = paging
    state.vm_id = vm_id
    mmu.physical_address_bits = PHYSICAL_ADDRESS_BITS
    mmu.has_1gib_pages = 1
    mmu.memory_at = host_address(machine.content, "machine memory")
    state.frame_kind_at = host_address(machine.kind, "kind of frames")
    state.frame_detail_at = host_address(machine.guest_ppn, "detail of frames")
    mmu.guest_pages = pmap.pages
    mmu.pmap_state_at = host_address(pmap.state, f"pmap.state of VM {vm_id}")
    mmu.pmap_frame_at = host_address(pmap.frame, f"pmap.frame of VM {vm_id}")
    mmu.pmap_flags_at = host_address(pmap.flags, f"pmap.flags of VM {vm_id}")
    state.pmap_counts_at = host_address(pmap.counts, f"pmap.counts of VM {vm_id}")
    state.pmap_large_at = host_address(pmap.large, f"pmap.large of VM {vm_id}")
