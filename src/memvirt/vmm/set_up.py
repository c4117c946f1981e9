# SPDX-License-Identifier: Apache-2.0
"""How compiled code finds the arrays of a new VMM."""

from __future__ import annotations

from memvirt.address import PAGE_SHIFT
from memvirt.machine.memory import MachineMemory

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
    mmu.memory_at = machine.host_address
    state.frame_kind_at = machine.kind.ctypes.data
    state.frame_detail_at = machine.guest_ppn.ctypes.data
    mmu.guest_pages = pmap.pages
    mmu.pmap_state_at = pmap.state.ctypes.data
    mmu.pmap_frame_at = pmap.frame.ctypes.data
    mmu.pmap_flags_at = pmap.flags.ctypes.data
    state.pmap_large_at = pmap.large.ctypes.data
    state.rmap_head_at = pmap.rmap_head.ctypes.data
