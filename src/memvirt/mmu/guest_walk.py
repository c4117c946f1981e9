# SPDX-License-Identifier: Apache-2.0
"""The walk of the guest's own page tables, in every x86 paging mode.

In nested mode each entry is reached through the nested table, so one walk of four levels over
four costs 24 references, the final translation included. The rules are those of Intel SDM
vol. 3A: translation 4.3 to 4.5, access rights 4.6, page faults 4.7, accessed and dirty bits 4.8.
Accessed and dirty bits are written only when the guest's tables allow the access.
"""

from __future__ import annotations

from memvirt.address import GuestPhysicalAddress, GuestVirtualAddress
from memvirt.compiled import compiled

from .access import FETCH, NEED_PAGE, OK, READ, TRUE_FAULT, WRITE
from .entry import (
    ACCESSED,
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    DIRTY,
    EFER_LMA,
    EFER_NXE,
    ENTRY_ADDRESS_MASK,
    FAULT_FETCH,
    FAULT_PRESENT,
    FAULT_RESERVED,
    FAULT_USER,
    FAULT_WRITE,
    GLOBAL,
    LARGE,
    MODE_2LEVEL,
    MODE_4LEVEL,
    MODE_5LEVEL,
    MODE_OFF,
    MODE_PAE,
    NO_EXECUTE,
    PRESENT,
    USER,
    WRITABLE,
)
from .mmu_state import MmuState
from .native import load32, load64, store32, store64
from .second_level import MISS, second_level

BAD_PAGE = NEED_PAGE  # a table lies where the VMM must act: second_level said where


@compiled
def paging_mode(cr0: int, cr4: int, efer: int) -> int:
    """The guest's paging mode: the number of levels of its tables, 0 if paging is off."""
    if cr0 & CR0_PG == 0:
        return MODE_OFF
    if cr4 & CR4_PAE == 0:
        return MODE_2LEVEL
    if efer & EFER_LMA == 0:
        return MODE_PAE
    return MODE_5LEVEL if cr4 & CR4_LA57 else MODE_4LEVEL


@compiled
def is_leaf(mmu: MmuState, mode: int, level: int, entry: int) -> bool:
    """True if a present entry maps a page rather than points to a table."""
    if level == 1:
        return True
    if entry & LARGE == 0:
        return False
    if mode == MODE_2LEVEL:
        return mmu.cr4 & CR4_PSE != 0
    return level <= 3 and not (mode == MODE_PAE and level == 3)


@compiled
def has_reserved_bits(mmu: MmuState, mode: int, level: int, entry: int) -> bool:
    """True if a present entry has a reserved bit set (SDM 4.7, RSVD flag)."""
    bits = mmu.physical_address_bits
    if mode == MODE_2LEVEL:
        if level == 2 and is_leaf(mmu, mode, level, entry):
            # PSE-36: bits 20:13 hold address bits 39:32, as far as the processor has them.
            high = min(bits, 40) - 32
            return ((entry >> 13) & 0x1FF) >> max(high, 0) != 0
        return False
    if mode == MODE_PAE and level == 3:
        return (entry & 0x1E6) != 0 or ((entry >> bits) & ((1 << (64 - bits)) - 1)) != 0
    if entry & NO_EXECUTE != 0 and mmu.efer & EFER_NXE == 0:
        return True
    if mode == MODE_PAE:
        if ((entry & ~NO_EXECUTE) >> bits) != 0:
            return True
    elif (entry & ENTRY_ADDRESS_MASK) >> bits != 0:
        return True
    if level == 1 or entry & LARGE == 0:
        return False
    if not is_leaf(mmu, mode, level, entry):
        return True  # PS in a PML4E or PML5E
    if level == 3 and mmu.has_1gib_pages == 0:
        return True
    return (entry & ((1 << (9 * level + 3)) - 1) & ~0x1FFF) != 0


@compiled
def leaf_address(
    mode: int, level: int, entry: int, gva: GuestVirtualAddress
) -> GuestPhysicalAddress:
    """The guest-physical address of ``gva`` by an entry of ``level`` that maps a page."""
    if mode == MODE_2LEVEL:
        if level == 2:
            base = (entry & 0xFFC0_0000) | (((entry >> 13) & 0xFF) << 32)
            return GuestPhysicalAddress(base | (gva & 0x3F_FFFF))
        return GuestPhysicalAddress((entry & 0xFFFF_F000) | (gva & 0xFFF))
    offset_mask = (1 << (9 * level + 3)) - 1
    return GuestPhysicalAddress((entry & ENTRY_ADDRESS_MASK & ~offset_mask) | (gva & offset_mask))


@compiled
def permission_error(
    mmu: MmuState,
    user_page: bool,
    writable: bool,
    no_execute: bool,
    access: int,
    write_protect: bool,
) -> int:
    """0 if the combined rights of a translation allow the access, else the #PF error code.

    ``write_protect`` is CR0.WP as the walk must honour it: the shadow walk is always done as
    if it were set. Access rights: SDM 4.6.1; error code: SDM 4.7 figure 4-12.
    """
    user_access = mmu.cpl == 3 and mmu.implicit_supervisor == 0
    denied = False
    if user_access:
        denied = not user_page or (access == WRITE and not writable)
    else:
        if access == WRITE and not writable and write_protect:
            denied = True
        if user_page:
            if access == FETCH:
                denied = denied or mmu.cr4 & CR4_SMEP != 0
            elif mmu.cr4 & CR4_SMAP != 0:
                denied = denied or mmu.alignment_check == 0 or mmu.implicit_supervisor != 0
    if access == FETCH and no_execute:
        denied = True
    if not denied:
        return 0
    return FAULT_PRESENT | access_error(mmu, access)


@compiled
def access_error(mmu: MmuState, access: int) -> int:
    """The bits of a #PF error code that describe the access itself."""
    error = 0
    if access == WRITE:
        error |= FAULT_WRITE
    if mmu.cpl == 3 and mmu.implicit_supervisor == 0:
        error |= FAULT_USER
    if access == FETCH:
        no_execute_enabled = mmu.efer & EFER_NXE != 0 and mmu.cr4 & CR4_PAE != 0
        if no_execute_enabled or mmu.cr4 & CR4_SMEP != 0:
            error |= FAULT_FETCH
    return error


@compiled
def _fault(mmu: MmuState, level: int, error: int) -> int:
    mmu.fault_level = level
    mmu.fault_error = error
    return TRUE_FAULT


@compiled
def _read_entries(mmu: MmuState, mode: int, gva: GuestVirtualAddress, access: int) -> int:
    """Read the entries from the root to the leaf into ``walk_entry``; OK or why not."""
    wide = mode != MODE_2LEVEL
    index_bits = 9 if wide else 10
    table = mmu.cr3 & (ENTRY_ADDRESS_MASK if mode >= MODE_4LEVEL else 0xFFFF_F000)
    if mode == MODE_PAE:
        table = mmu.cr3 & 0xFFFF_FFE0
    user, writable, no_execute, common = True, True, False, -1
    for step in range(mode):
        level = mode - step
        index = (gva >> (12 + (level - 1) * index_bits)) & ((1 << index_bits) - 1)
        if mode == MODE_PAE and level == 3:
            index &= 3
        entry_gpa = GuestPhysicalAddress(table + index * (8 if wide else 4))
        if entry_gpa >> 12 >= mmu.guest_pages:
            entry = -1 if wide else 0xFFFF_FFFF  # open bus: no memory answers there
        else:
            address = second_level(mmu, entry_gpa, READ)
            if address == MISS:
                return BAD_PAGE
            entry = load64(mmu.memory_at + address) if wide else load32(mmu.memory_at + address)
        mmu.walk_references += 1
        mmu.walk_entry[level] = entry
        mmu.walk_entry_gpa[level] = entry_gpa
        if entry & PRESENT == 0:
            return int(_fault(mmu, level, access_error(mmu, access)))
        if has_reserved_bits(mmu, mode, level, entry):
            error = FAULT_PRESENT | FAULT_RESERVED | access_error(mmu, access)
            return int(_fault(mmu, level, error))
        if not (mode == MODE_PAE and level == 3):
            user = user and entry & USER != 0
            writable = writable and entry & WRITABLE != 0
            no_execute = no_execute or (wide and entry & NO_EXECUTE != 0)
            common &= entry
        if is_leaf(mmu, mode, level, entry):
            mmu.walk_leaf_level = level
            mmu.walk_gpa = leaf_address(mode, level, entry, gva)
            mmu.walk_page_bytes = 1 << (12 + (level - 1) * index_bits)
            mmu.walk_user, mmu.walk_writable = user, writable
            mmu.walk_no_execute = no_execute
            mmu.walk_common = common
            mmu.walk_global = entry & GLOBAL != 0 and mmu.cr4 & CR4_PGE != 0
            return OK
        table = entry & (ENTRY_ADDRESS_MASK if wide else 0xFFFF_F000)
    return OK


@compiled
def _update_entries(mmu: MmuState, mode: int, access: int) -> int:
    """Set the accessed bits of the walk's entries, and the leaf's dirty bit for a write."""
    leaf = mmu.walk_leaf_level
    if mmu.walk_common & ACCESSED != 0 and (access != WRITE or mmu.walk_entry[leaf] & DIRTY != 0):
        mmu.walk_dirty = mmu.walk_entry[leaf] & DIRTY != 0
        return OK
    references = mmu.walk_references  # the update goes where the walk has just read: no new ones
    for step in range(mode - leaf + 1):
        level = mode - step
        if mode == MODE_PAE and level == 3:
            continue
        entry = mmu.walk_entry[level]
        wanted = entry | ACCESSED
        if level == leaf and access == WRITE:
            wanted |= DIRTY
        if wanted == entry:
            continue
        address = second_level(mmu, mmu.walk_entry_gpa[level], WRITE)
        mmu.walk_references = references
        if address == MISS:
            return BAD_PAGE
        if mode == MODE_2LEVEL:
            store32(mmu.memory_at + address, wanted)
        else:
            store64(mmu.memory_at + address, wanted)
        mmu.walk_entry[level] = wanted
    mmu.walk_dirty = mmu.walk_entry[leaf] & DIRTY != 0
    return OK


@compiled
def guest_walk(mmu: MmuState, gva: GuestVirtualAddress, access: int, update: bool = True) -> int:
    """Translate ``gva`` by the guest's tables, with the control registers in ``mmu``.

    Returns OK (``walk_gpa``, ``walk_page_bytes``, the combined rights and the entries are set),
    TRUE_FAULT (``fault_error`` is the architectural #PF error code, ``fault_level`` the level of
    the entry that denied) or NEED_PAGE (a table is not within reach: ``violation_gpa``). With
    ``update`` false no accessed or dirty bit is written: for inspection. The caller rejects
    non-canonical addresses. Obligation: none; a change of the entries by the accessed and dirty
    update never revokes a cached translation.
    """
    mmu.guest_walks += 1
    mode = paging_mode(mmu.cr0, mmu.cr4, mmu.efer)
    mmu.walk_levels = mode
    if mode == MODE_OFF:
        mmu.walk_gpa = GuestPhysicalAddress(gva & 0xFFFF_FFFF)
        mmu.walk_leaf_level = 0
        mmu.walk_user, mmu.walk_writable, mmu.walk_no_execute = True, True, False
        mmu.walk_dirty, mmu.walk_global = True, False
        mmu.walk_page_bytes = 1 << 32
        return OK
    status = _read_entries(mmu, mode, gva, access)
    if status != OK:
        return int(status)
    error = permission_error(
        mmu,
        mmu.walk_user != 0,
        mmu.walk_writable != 0,
        mmu.walk_no_execute != 0,
        access,
        mmu.cr0 & CR0_WP != 0,
    )
    if error != 0:
        return int(_fault(mmu, mmu.walk_leaf_level, error))
    if update:
        return int(_update_entries(mmu, mode, access))
    mmu.walk_dirty = mmu.walk_entry[mmu.walk_leaf_level] & DIRTY != 0
    return OK
