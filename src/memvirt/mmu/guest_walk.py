# SPDX-License-Identifier: Apache-2.0
"""The walk of the guest's own page tables, in every x86 paging mode.

In nested mode each entry is reached through the nested table, so one walk of four levels over
four costs 24 references, the final translation included. The rules are those of Intel SDM
vol. 3A: translation 4.3 to 4.5, access rights 4.6, page faults 4.7, accessed and dirty bits 4.8.
Accessed and dirty bits are written only when the guest's tables allow the access.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from .control import FETCH, NEED_PAGE, OK, READ, TRUE_FAULT, WRITE
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
from .native import load32, load64, store32, store64
from .second_level import MISS, second_level

BAD_PAGE = NEED_PAGE  # a table lies where the VMM must act: second_level said where


@njit(nogil=True, cache=True)
def paging_mode(cr0: int, cr4: int, efer: int) -> int:
    """The guest's paging mode: the number of levels of its tables, 0 if paging is off."""
    if cr0 & CR0_PG == 0:
        return MODE_OFF
    if cr4 & CR4_PAE == 0:
        return MODE_2LEVEL
    if efer & EFER_LMA == 0:
        return MODE_PAE
    return MODE_5LEVEL if cr4 & CR4_LA57 else MODE_4LEVEL


@njit(nogil=True, cache=True)
def is_leaf(vm: Any, mode: int, level: int, entry: int) -> bool:
    """True if a present entry maps a page rather than points to a table."""
    if level == 1:
        return True
    if entry & LARGE == 0:
        return False
    if mode == MODE_2LEVEL:
        return vm.cr4 & CR4_PSE != 0
    return level <= 3 and not (mode == MODE_PAE and level == 3)


@njit(nogil=True, cache=True)
def has_reserved_bits(vm: Any, mode: int, level: int, entry: int) -> bool:
    """True if a present entry has a reserved bit set (SDM 4.7, RSVD flag)."""
    bits = vm.physical_address_bits
    if mode == MODE_2LEVEL:
        if level == 2 and is_leaf(vm, mode, level, entry):
            # PSE-36: bits 20:13 hold address bits 39:32, as far as the processor has them.
            high = min(bits, 40) - 32
            return ((entry >> 13) & 0x1FF) >> max(high, 0) != 0
        return False
    if mode == MODE_PAE and level == 3:
        return (entry & 0x1E6) != 0 or ((entry >> bits) & ((1 << (64 - bits)) - 1)) != 0
    if entry & NO_EXECUTE != 0 and vm.efer & EFER_NXE == 0:
        return True
    if mode == MODE_PAE:
        if ((entry & ~NO_EXECUTE) >> bits) != 0:
            return True
    elif (entry & ENTRY_ADDRESS_MASK) >> bits != 0:
        return True
    if level == 1 or entry & LARGE == 0:
        return False
    if not is_leaf(vm, mode, level, entry):
        return True  # PS in a PML4E or PML5E
    if level == 3 and vm.has_1gib_pages == 0:
        return True
    return (entry & ((1 << (9 * level + 3)) - 1) & ~0x1FFF) != 0


@njit(nogil=True, cache=True)
def leaf_address(mode: int, level: int, entry: int, gva: int) -> int:
    """The guest-physical address of ``gva`` by an entry of ``level`` that maps a page."""
    if mode == MODE_2LEVEL:
        if level == 2:
            base = (entry & 0xFFC0_0000) | (((entry >> 13) & 0xFF) << 32)
            return base | (gva & 0x3F_FFFF)
        return (entry & 0xFFFF_F000) | (gva & 0xFFF)
    offset_mask = (1 << (9 * level + 3)) - 1
    return (entry & ENTRY_ADDRESS_MASK & ~offset_mask) | (gva & offset_mask)


@njit(nogil=True, cache=True)
def permission_error(
    vm: Any, user_page: bool, writable: bool, no_execute: bool, access: int, write_protect: bool
) -> int:
    """0 if the combined rights of a translation allow the access, else the #PF error code.

    ``write_protect`` is CR0.WP as the walk must honour it: the shadow walk is always done as
    if it were set. Access rights: SDM 4.6.1; error code: SDM 4.7 figure 4-12.
    """
    user_access = vm.cpl == 3 and vm.implicit_supervisor == 0
    denied = False
    if user_access:
        denied = not user_page or (access == WRITE and not writable)
    else:
        if access == WRITE and not writable and write_protect:
            denied = True
        if user_page:
            if access == FETCH:
                denied = denied or vm.cr4 & CR4_SMEP != 0
            elif vm.cr4 & CR4_SMAP != 0:
                denied = denied or vm.alignment_check == 0 or vm.implicit_supervisor != 0
    if access == FETCH and no_execute:
        denied = True
    if not denied:
        return 0
    return FAULT_PRESENT | access_error(vm, access)


@njit(nogil=True, cache=True)
def access_error(vm: Any, access: int) -> int:
    """The bits of a #PF error code that describe the access itself."""
    error = 0
    if access == WRITE:
        error |= FAULT_WRITE
    if vm.cpl == 3 and vm.implicit_supervisor == 0:
        error |= FAULT_USER
    if access == FETCH:
        no_execute_enabled = vm.efer & EFER_NXE != 0 and vm.cr4 & CR4_PAE != 0
        if no_execute_enabled or vm.cr4 & CR4_SMEP != 0:
            error |= FAULT_FETCH
    return error


@njit(nogil=True, cache=True)
def _fault(vm: Any, level: int, error: int) -> int:
    vm.fault_level = level
    vm.fault_error = error
    return TRUE_FAULT


@njit(nogil=True, cache=True)
def _read_entries(vm: Any, mode: int, gva: int, access: int) -> int:
    """Read the entries from the root to the leaf into ``walk_entry``; OK or why not."""
    wide = mode != MODE_2LEVEL
    index_bits = 9 if wide else 10
    table = vm.cr3 & (ENTRY_ADDRESS_MASK if mode >= MODE_4LEVEL else 0xFFFF_F000)
    if mode == MODE_PAE:
        table = vm.cr3 & 0xFFFF_FFE0
    user, writable, no_execute = True, True, False
    for step in range(mode):
        level = mode - step
        index = (gva >> (12 + (level - 1) * index_bits)) & ((1 << index_bits) - 1)
        if mode == MODE_PAE and level == 3:
            index &= 3
        entry_gpa = table + index * (8 if wide else 4)
        if entry_gpa >> 12 >= vm.guest_pages:
            entry = -1 if wide else 0xFFFF_FFFF  # open bus: no memory answers there
        else:
            address = second_level(vm, entry_gpa, READ)
            if address == MISS:
                return BAD_PAGE
            entry = load64(vm.memory_at + address) if wide else load32(vm.memory_at + address)
        vm.walk_references += 1
        vm.walk_entry[level] = entry
        vm.walk_entry_gpa[level] = entry_gpa
        if entry & PRESENT == 0:
            return int(_fault(vm, level, access_error(vm, access)))
        if has_reserved_bits(vm, mode, level, entry):
            error = FAULT_PRESENT | FAULT_RESERVED | access_error(vm, access)
            return int(_fault(vm, level, error))
        if not (mode == MODE_PAE and level == 3):
            user = user and entry & USER != 0
            writable = writable and entry & WRITABLE != 0
            no_execute = no_execute or (wide and entry & NO_EXECUTE != 0)
        if is_leaf(vm, mode, level, entry):
            vm.walk_leaf_level = level
            vm.walk_gpa = leaf_address(mode, level, entry, gva)
            vm.walk_page_bytes = 1 << (12 + (level - 1) * index_bits)
            vm.walk_user, vm.walk_writable = user, writable
            vm.walk_no_execute = no_execute
            vm.walk_global = entry & GLOBAL != 0 and vm.cr4 & CR4_PGE != 0
            return OK
        table = entry & (ENTRY_ADDRESS_MASK if wide else 0xFFFF_F000)
    return OK


@njit(nogil=True, cache=True)
def _update_entries(vm: Any, mode: int, access: int) -> int:
    """Set the accessed bits of the walk's entries, and the leaf's dirty bit for a write."""
    leaf = vm.walk_leaf_level
    for step in range(mode - leaf + 1):
        level = mode - step
        if mode == MODE_PAE and level == 3:
            continue
        entry = vm.walk_entry[level]
        wanted = entry | ACCESSED
        if level == leaf and access == WRITE:
            wanted |= DIRTY
        if wanted == entry:
            continue
        address = second_level(vm, vm.walk_entry_gpa[level], WRITE)
        if address == MISS:
            return BAD_PAGE
        if mode == MODE_2LEVEL:
            store32(vm.memory_at + address, wanted)
        else:
            store64(vm.memory_at + address, wanted)
        vm.walk_entry[level] = wanted
    vm.walk_dirty = vm.walk_entry[leaf] & DIRTY != 0
    return OK


@njit(nogil=True, cache=True)
def guest_walk(vm: Any, gva: int, access: int, update: bool = True) -> int:
    """Translate ``gva`` by the guest's tables, with the control registers in ``vm``.

    Returns OK (``walk_gpa``, ``walk_page_bytes``, the combined rights and the entries are set),
    TRUE_FAULT (``fault_error`` is the architectural #PF error code, ``fault_level`` the level of
    the entry that denied) or NEED_PAGE (a table is not within reach: ``violation_gpa``). With
    ``update`` false no accessed or dirty bit is written: for inspection. The caller rejects
    non-canonical addresses. Obligation: none; a change of the entries by the accessed and dirty
    update never revokes a cached translation.
    """
    vm.guest_walks += 1
    mode = paging_mode(vm.cr0, vm.cr4, vm.efer)
    vm.walk_levels = mode
    if mode == MODE_OFF:
        vm.walk_gpa = gva & 0xFFFF_FFFF
        vm.walk_leaf_level = 0
        vm.walk_user, vm.walk_writable, vm.walk_no_execute = True, True, False
        vm.walk_dirty, vm.walk_global = True, False
        vm.walk_page_bytes = 1 << 32
        return OK
    status = _read_entries(vm, mode, gva, access)
    if status != OK:
        return int(status)
    error = permission_error(
        vm,
        vm.walk_user != 0,
        vm.walk_writable != 0,
        vm.walk_no_execute != 0,
        access,
        vm.cr0 & CR0_WP != 0,
    )
    if error != 0:
        return int(_fault(vm, vm.walk_leaf_level, error))
    if update:
        return int(_update_entries(vm, mode, access))
    vm.walk_dirty = vm.walk_entry[vm.walk_leaf_level] & DIRTY != 0
    return OK
