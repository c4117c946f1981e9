# SPDX-License-Identifier: Apache-2.0
"""A cache of guest walks in nested mode, by 2 MiB of guest virtual addresses.

A processor's paging-structure caches (SDM vol. 3A section 4.10.3) keep upper entries until the
guest flushes. This one keeps where they lie, and what they were: each look-up reads them again, all
at once instead of one after the other, and the last entry anew. So it answers as a walk does,
whatever the guest did to its tables, and no flush of the guest's concerns it. Where tables lie may
change by the host's hand only: whoever drops a nested entry owes ``forget_walks``.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Annotated

import numpy as np

from memvirt.address import GuestVirtualAddress
from memvirt.compiled import compiled
from memvirt.state_record import Record, record_dtype

from .access import READ, WRITE
from .entry import (
    ACCESSED,
    CR0_WP,
    CR4_PGE,
    DIRTY,
    GLOBAL,
    LARGE,
    MODE_4LEVEL,
    NO_EXECUTE,
    PRESENT,
    USER,
    WRITABLE,
)
from .guest_walk import has_reserved_bits, leaf_address, paging_mode, permission_error
from .mmu_state import MmuState
from .native import load64, record_reference
from .second_level import MISS, second_level


class WalkCacheEntry(Record):
    """The upper entries of a walk of four levels that succeeded."""

    generation: int  # ``mmu.walk_cache_generation`` when it was made; 0: free
    region: int  # gVA >> 21
    cr3: int
    efer: int
    leaf_level: int  # 1, or 2 where the page is of 2 MiB
    upper_at: Annotated[MutableSequence[int], np.int64, 3]  # host addresses, from level 4 down
    upper_entry: Annotated[MutableSequence[int], np.int64, 3]
    rights: int  # of the upper entries: USER and WRITABLE if all have them, NO_EXECUTE if one has
    leaf_table_at: int  # host address
    references: int  # of the guest's walk, by the architecture


WALK_CACHE_ENTRIES = 256
WALK_CACHE_DTYPE = record_dtype(WalkCacheEntry)
_ENTRY_BYTES = WALK_CACHE_DTYPE.itemsize
_entry_at = record_reference(WalkCacheEntry)


@compiled
def forget_walks(mmu: MmuState) -> None:
    """Forget all walks: a page of the guest, perhaps one of its tables, moves or loses a right."""
    mmu.walk_cache_generation += 1


@compiled
def cached_walk(mmu: MmuState, gva: GuestVirtualAddress, access: int) -> bool:
    """True if ``gva`` is translated as ``guest_walk`` would have, in all but ``walk_entry``.

    False, with nothing changed, where that walk has to be made: nothing is known of it, an entry
    has changed or has to be, or the access is not allowed.
    """
    at = mmu.walk_cache_at + ((gva >> 21) & (WALK_CACHE_ENTRIES - 1)) * _ENTRY_BYTES
    known = _entry_at(at)
    if known.generation != mmu.walk_cache_generation or known.region != gva >> 21:
        return False
    if known.cr3 != mmu.cr3 or known.efer != mmu.efer:
        return False
    if paging_mode(mmu.cr0, mmu.cr4, mmu.efer) != MODE_4LEVEL:
        return False
    if load64(known.upper_at[0]) != known.upper_entry[0]:
        return False
    if load64(known.upper_at[1]) != known.upper_entry[1]:
        return False
    leaf, shift = known.leaf_level, 21
    if leaf == 1:
        if load64(known.upper_at[2]) != known.upper_entry[2]:
            return False
        shift = 12
    entry = load64(known.leaf_table_at + ((gva >> shift) & 511) * 8)
    wanted = PRESENT | ACCESSED | (DIRTY if access == WRITE else 0) | (LARGE if leaf == 2 else 0)
    if entry & wanted != wanted or has_reserved_bits(mmu, MODE_4LEVEL, leaf, entry):
        return False
    both = known.rights & entry
    user, writable = both & USER != 0, both & WRITABLE != 0
    no_execute = (known.rights | entry) & NO_EXECUTE != 0
    write_protect = mmu.cr0 & CR0_WP != 0
    if permission_error(mmu, user, writable, no_execute, access, write_protect) != 0:
        return False
    mmu.guest_walks += 1
    mmu.walk_references += known.references
    mmu.walk_levels = MODE_4LEVEL
    mmu.walk_leaf_level = leaf
    mmu.walk_gpa = leaf_address(MODE_4LEVEL, leaf, entry, gva)
    mmu.walk_page_bytes = 1 << shift
    mmu.walk_user, mmu.walk_writable, mmu.walk_no_execute = user, writable, no_execute
    mmu.walk_dirty = entry & DIRTY != 0
    mmu.walk_global = entry & GLOBAL != 0 and mmu.cr4 & CR4_PGE != 0
    return True


@compiled
def remember_walk(mmu: MmuState, gva: GuestVirtualAddress) -> None:
    """Keep the upper entries of the walk of ``gva`` that ``guest_walk`` has just made."""
    leaf = mmu.walk_leaf_level
    if mmu.walk_levels != MODE_4LEVEL or leaf > 2:
        return
    at = mmu.walk_cache_at + ((gva >> 21) & (WALK_CACHE_ENTRIES - 1)) * _ENTRY_BYTES
    known = _entry_at(at)
    known.generation = 0
    references = mmu.walk_references
    rights, no_execute = USER | WRITABLE, 0
    for step in range(5 - leaf):
        level = 4 - step
        address = second_level(mmu, mmu.walk_entry_gpa[level], READ)
        if address == MISS:
            mmu.walk_references = references
            return
        if level == leaf:
            known.leaf_table_at = mmu.memory_at + (address & ~0xFFF)
        else:
            entry = mmu.walk_entry[level]
            known.upper_at[step] = mmu.memory_at + address
            known.upper_entry[step] = entry
            rights &= entry
            no_execute |= entry & NO_EXECUTE
    known.references = mmu.walk_references - references + 5 - leaf
    mmu.walk_references = references
    known.region, known.cr3, known.efer = gva >> 21, mmu.cr3, mmu.efer
    known.leaf_level = leaf
    known.rights = rights | no_execute
    known.generation = mmu.walk_cache_generation
