# SPDX-License-Identifier: Apache-2.0
"""The state of one virtual MMU: what the walkers read, and what they answer.

It is part of the VMM's record (``vmm.vmm_state``), whose owner sets the addresses. Whoever asks for
a walk owes the control registers first: the processor copies them in whenever they may differ.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Annotated

import numpy as np

from memvirt.address import GuestPhysicalAddress, MachineAddress, MachinePageNumber
from memvirt.state_record import Record, record_dtype

WALK_LEVELS = 6  # index by level: 1 (PTE) to 5 (PML5E)


class MmuState(Record):
    """Registers, roots and results of one processor's memory management unit."""

    # Control registers, as the processor last held them.
    cr0: int
    cr3: int
    cr4: int
    efer: int
    cpl: int
    alignment_check: int
    implicit_supervisor: int  # the processor's own access to descriptor tables and stacks
    physical_address_bits: int  # bits of an entry above this width are reserved
    has_1gib_pages: int
    # Machine memory, and the second level of translation: the nested table, or the pmap.
    memory_at: int
    guest_pages: int
    is_nested: int
    pmap_state_at: int  # uint8 by PPN
    pmap_frame_at: int  # uint32 by PPN
    pmap_flags_at: int  # uint8 by PPN
    nested_root: MachinePageNumber
    nested_cache_at: int  # NESTED_CACHE_ENTRIES of NestedCacheEntry
    nested_cache_hits: int
    walk_cache_at: int  # records of ``walk_cache``
    walk_cache_generation: int  # those of another one are free
    # The shadow table the processor walks now.
    shadow_root: MachinePageNumber
    shadow_levels: int
    # Result of a guest walk.
    walk_levels: int
    walk_leaf_level: int
    walk_gpa: GuestPhysicalAddress
    walk_user: int
    walk_writable: int
    walk_no_execute: int
    walk_dirty: int
    walk_global: int
    walk_page_bytes: int
    walk_common: int  # bits set in all its entries
    walk_entry: Annotated[MutableSequence[int], np.int64, WALK_LEVELS]  # after its A/D update
    walk_entry_gpa: Annotated[MutableSequence[GuestPhysicalAddress], np.int64, WALK_LEVELS]
    # Result of an access, or why it could not be made.
    out_machine_address: MachineAddress
    out_permissions: int
    out_large_page: int
    fault_error: int
    fault_level: int
    violation_gpa: GuestPhysicalAddress
    violation_qualification: int
    violation_level: int
    # Counters. References are reads of paging-structure entries.
    walk_references: int
    guest_walks: int


MMU_DTYPE = record_dtype(MmuState)


class NestedCacheEntry(Record):
    """An entry of level 2 of the nested table, as a processor's paging-structure cache has it (SDM
    vol. 3C section 29.4.1): what 2 MiB of guest-physical addresses need of the upper levels."""

    tag: int  # gPA >> 21, + 1; 0: free
    entry: int  # last-level table or large page, and the rights of levels 4 to 2 combined


NESTED_CACHE_ENTRIES = 1024  # 2 GiB
NESTED_CACHE_DTYPE = record_dtype(NestedCacheEntry)
