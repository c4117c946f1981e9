# SPDX-License-Identifier: Apache-2.0
"""From guest-physical to machine addresses: the EPT walk, and the VMM's own look-up.

Nested paging goes through the nested table (EPT format, four levels) in machine memory, as the
hardware does. In shadow and flat mode it is the VMM, not the hardware, that reads guest tables,
and it looks the PPN up in the pmap. Both answer with a machine address or with ``MISS``, having
said in ``MmuState`` why.
"""

from __future__ import annotations

from memvirt.address import (
    GuestPhysicalAddress,
    MachineAddress,
    MachinePageNumber,
    PhysicalPageNumber,
    machine_address,
    physical_page_number,
)
from memvirt.compiled import compiled

from .access import READ, WRITE
from .entry import (
    ENTRY_ADDRESS_MASK,
    EPT_LARGE,
    EPT_MISCONFIGURATION,
    EPT_READ,
    EPT_RIGHTS,
    EPT_WRITE,
)
from .mmu_state import NESTED_CACHE_ENTRIES, MmuState
from .native import load8, load32, load64, store8, store64
from .page_state import FLAG_UNWRITTEN, FLAGS_UNTIL_TOUCHED, STATE_PRIVATE, STATE_SHARED

MISS = MachineAddress(-1)  # in place of a machine address: there is none


@compiled
def ept_entry_is_misconfigured(entry: int, level: int, physical_address_bits: int) -> bool:
    """True if a present EPT entry breaks a rule of SDM vol. 3C section 29.3.3.1."""
    rights = entry & EPT_RIGHTS
    if rights & EPT_READ == 0:
        return True  # write-only, write-execute, or execute-only without that capability
    if (entry & ENTRY_ADDRESS_MASK) >> physical_address_bits != 0:
        return True
    if level == 4:
        return (entry & 0xF8) != 0
    if level == 1 or entry & EPT_LARGE:
        memory_type = (entry >> 3) & 7
        if memory_type == 2 or memory_type == 3 or memory_type == 7:
            return True
        if level == 1:
            return False
        return (entry & ENTRY_ADDRESS_MASK & ((1 << (9 * level + 3)) - 1)) != 0
    return (entry & 0x78) != 0


@compiled
def nested_cache_slot(mmu: MmuState, gpa: GuestPhysicalAddress) -> int:
    """Address of the only slot of the nested cache where what maps ``gpa`` may be."""
    return mmu.nested_cache_at + ((gpa >> 21) & (NESTED_CACHE_ENTRIES - 1)) * 16


@compiled
def forget_nested(mmu: MmuState, gpa: GuestPhysicalAddress) -> None:
    """Drop what the nested cache has of the 2 MiB with ``gpa``.

    Owed whenever their nested entry of level 2, or one above it, loses a right or points elsewhere
    (SDM vol. 3C section 29.4.3.3). Entries of level 1 are not cached; after one that gains a right
    the walk begins at the root, as after any that fails.
    """
    at = nested_cache_slot(mmu, gpa)
    if load64(at) == (gpa >> 21) + 1:
        store64(at, 0)


@compiled
def _ept_walk_cached(mmu: MmuState, gpa: GuestPhysicalAddress, access: int) -> MachineAddress:
    """As ``ept_walk``, by the nested cache; MISS, with nothing said, if that does not grant it."""
    at = nested_cache_slot(mmu, gpa)
    if load64(at) != (gpa >> 21) + 1:
        return MISS
    rights = load64(at + 8)
    leaf = rights
    references, offset_mask = 3, (1 << 21) - 1
    if leaf & EPT_LARGE == 0:
        table = rights & ENTRY_ADDRESS_MASK
        leaf = load64(mmu.memory_at + table + ((gpa >> 12) & 511) * 8)
        if ept_entry_is_misconfigured(leaf, 1, mmu.physical_address_bits):
            return MISS
        references, offset_mask = 4, (1 << 12) - 1
        rights &= leaf
    if rights & (1 << access) == 0:
        return MISS
    mmu.walk_references += references
    mmu.nested_cache_hits += 1
    mmu.out_permissions = rights & EPT_RIGHTS
    return MachineAddress((leaf & ENTRY_ADDRESS_MASK & ~offset_mask) | (gpa & offset_mask))


@compiled
def ept_walk(mmu: MmuState, gpa: GuestPhysicalAddress, access: int) -> MachineAddress:
    """Walk the nested table for ``gpa`` (``access``: READ, WRITE or FETCH).

    Returns the machine address, or MISS with ``violation_gpa``, ``violation_level`` and
    ``violation_qualification`` (SDM table 28-7: access in bits 0 to 2, the entries' combined
    rights in bits 3 to 5) set. Sets ``out_permissions`` to the combined EPT rights. Counts each
    entry in ``walk_references``, those answered by the nested cache included: the figure is the
    cost of nested paging by the architecture, whatever a cache saves of it.
    """
    address = _ept_walk_cached(mmu, gpa, access)
    if address != MISS:
        return MachineAddress(address)
    table = mmu.nested_root << 12
    rights = EPT_RIGHTS
    level = 4
    while True:
        shift = 9 * level + 3
        entry = load64(mmu.memory_at + table + ((gpa >> shift) & 511) * 8)
        mmu.walk_references += 1
        rights &= entry
        if entry & EPT_RIGHTS == 0 or (gpa >> 48) != 0:
            rights = 0
            break
        if ept_entry_is_misconfigured(entry, level, mmu.physical_address_bits):
            mmu.violation_gpa = gpa
            mmu.violation_level = level
            mmu.violation_qualification = EPT_MISCONFIGURATION
            return MISS
        if level == 2:
            at = nested_cache_slot(mmu, gpa)
            store64(at, (gpa >> 21) + 1)
            store64(at + 8, (entry & (ENTRY_ADDRESS_MASK | EPT_LARGE)) | rights)
        if level == 1 or entry & EPT_LARGE:
            if rights & (1 << access) == 0:
                break
            mmu.out_permissions = rights
            offset_mask = (1 << shift) - 1
            return MachineAddress((entry & ENTRY_ADDRESS_MASK & ~offset_mask) | (gpa & offset_mask))
        table = entry & ENTRY_ADDRESS_MASK
        level -= 1
    mmu.violation_gpa = gpa
    mmu.violation_level = level
    mmu.violation_qualification = (1 << access) | (rights << 3)
    return MISS


@compiled
def pmap_walk(mmu: MmuState, gpa: GuestPhysicalAddress, access: int) -> MachineAddress:
    """The machine address behind ``gpa`` by the pmap, or MISS if the VMM must act first."""
    ppn = physical_page_number(gpa)
    if ppn < mmu.guest_pages:
        state = load8(mmu.pmap_state_at + ppn)
        flags = load8(mmu.pmap_flags_at + ppn)
        if flags & FLAGS_UNTIL_TOUCHED:  # a guest table that is walked is in use
            store8(mmu.pmap_flags_at + ppn, flags & ~FLAGS_UNTIL_TOUCHED)
        if state == STATE_PRIVATE or (state == STATE_SHARED and access != WRITE):
            mmu.out_permissions = EPT_RIGHTS if state == STATE_PRIVATE else EPT_RIGHTS & ~EPT_WRITE
            mpn = MachinePageNumber(load32(mmu.pmap_frame_at + ppn * 4))
            return machine_address(mpn, gpa & 0xFFF)
    mmu.violation_gpa = gpa
    mmu.violation_level = 1
    mmu.violation_qualification = 1 << access
    return MISS


@compiled
def note_write(mmu: MmuState, ppn: PhysicalPageNumber) -> None:
    """The content of ``ppn`` is about to change. Needs no flush: nobody may do less than before."""
    at = mmu.pmap_flags_at + ppn
    flags = load8(at)
    if flags & FLAG_UNWRITTEN:
        store8(at, flags & ~FLAG_UNWRITTEN)


@compiled
def second_level(mmu: MmuState, gpa: GuestPhysicalAddress, access: int = READ) -> MachineAddress:
    """The machine address behind ``gpa``, a page of the VM, in its paging mode; or MISS.

    A WRITE is noted: the caller does write there.
    """
    if mmu.is_nested:
        address = ept_walk(mmu, gpa, access)
    else:
        address = pmap_walk(mmu, gpa, access)
    if access == WRITE and address != MISS:
        note_write(mmu, physical_page_number(gpa))
    return MachineAddress(address)
