# SPDX-License-Identifier: Apache-2.0
"""The arrays of a new VMM, and the control block through which compiled code finds them."""

from __future__ import annotations

from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES, PAGE_SHIFT
from memvirt.machine.memory import FrameKind, MachineMemory
from memvirt.mmu.host_ranges import host_address

from .paging.shadow_table import SHADOW_PAGE_DTYPE, zap_all
from .pmap import PageState, Pmap

PHYSICAL_ADDRESS_BITS = 40
LAPIC_GPA = 0xFEE0_0000


def set_up_control(block: Any, machine: MachineMemory, pmap: Pmap, paging: int, vm_id: int) -> None:
    """Tell compiled code where machine memory and the pmap are.

    Raises ValueError for machine memory beyond the width of a physical address.
    """
    if machine.frames > 1 << (PHYSICAL_ADDRESS_BITS - PAGE_SHIFT):
        raise ValueError(f"machine memory of {machine.frames} frames: at most 1 TiB has addresses")
    block.paging = paging
    block.vm_id = vm_id
    block.physical_address_bits = PHYSICAL_ADDRESS_BITS
    block.has_1gib_pages = 1
    block.memory_at = host_address(machine.content, "machine memory")
    block.machine_bytes = machine.bytes
    block.frame_kind_at = host_address(machine.kind, "kind of frames")
    block.frame_owner_at = host_address(machine.owner, "owner of frames")
    block.frame_tag_at = host_address(machine.tag, "tag of frames")
    block.frame_references_at = host_address(machine.references, "references of frames")
    block.guest_pages = pmap.pages
    block.pmap_state_at = host_address(pmap.state, f"pmap.state of VM {vm_id}")
    block.pmap_frame_at = host_address(pmap.frame, f"pmap.frame of VM {vm_id}")
    block.pmap_flags_at = host_address(pmap.flags, f"pmap.flags of VM {vm_id}")
    block.pmap_large_at = host_address(pmap.large, f"pmap.large of VM {vm_id}")
    block.rmap_head_at = host_address(pmap.rmap_head, f"pmap.rmap_head of VM {vm_id}")
    block.lapic_gpa = LAPIC_GPA
    block.lapic_window = -(-machine.bytes // (1 << 21)) * (1 << 21)
    block.hole_window = block.lapic_window + PAGE_BYTES
    block.event_vector = -1


def shadow_capacity(pages: int) -> int:
    """Shadow pages for a VM of ``pages`` pages: its own tables, with room to spare."""
    return 256 + pages // 64


class ShadowPool:
    """The pool of shadow pages of one VM; ``capacity`` 1 if it uses none."""

    def __init__(self, control_block: Any, block: Any, capacity: int) -> None:
        buckets = 1 << max(capacity - 1, 1).bit_length()
        self.pages = np.zeros(capacity, SHADOW_PAGE_DTYPE)
        self.pages["mpn"] = -1
        self._copy = np.zeros(capacity * 512, np.int64)
        self.rmap_next = np.zeros(capacity * 512, np.int32)
        self.rmap_previous = np.zeros(capacity * 512, np.int32)
        self._parent = np.full(capacity, -1, np.int32)
        self._hash = np.full(buckets, -1, np.int32)
        self._unsynchronized = np.zeros(capacity, np.int32)
        block.shadow_capacity = capacity
        block.shadow_pages_at = host_address(self.pages, "shadow pages")
        block.shadow_copy_at = host_address(self._copy, "shadow copy")
        block.rmap_next_at = host_address(self.rmap_next, "shadow rmap_next")
        block.rmap_previous_at = host_address(self.rmap_previous, "shadow rmap_previous")
        block.shadow_parent_at = host_address(self._parent, "shadow parent")
        block.shadow_hash_at = host_address(self._hash, "shadow hash")
        block.shadow_hash_mask = buckets - 1
        block.unsynchronized_at = host_address(self._unsynchronized, "shadow unsynchronized")
        zap_all(control_block[0])
        block.shadow_zaps = 0
        block.shadow_stale = 0


def map_flat(machine: MachineMemory, pmap: Pmap, vm_id: int) -> None:
    """Flat memory: one contiguous run of frames, all of it at once."""
    first = machine.allocate_contiguous(pmap.pages, kind=FrameKind.GUEST, owner=vm_id)
    mpns = np.arange(first, first + pmap.pages, dtype=np.uint32)
    machine.tag[mpns] = np.arange(pmap.pages)
    pmap.frame[:] = mpns
    pmap.state[:] = PageState.PRIVATE
