# SPDX-License-Identifier: Apache-2.0
"""Shadow paging: hidden faults, traces, roots. The guest's tables in, shadow entries out.

A miss in the shadow table is a *hidden* fault if the guest's tables allow the access: the entry is
filled here, in compiled code, and the guest never knows. If they deny it, it is a *true* fault.
An entry exists only for accessed guest entries and is read-only until the guest entry is dirty,
its PPN exclusively owned, and not a traced page table.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from memvirt.mmu.control import (
    FLAG_TRACED,
    FLUSH_AND_RETRY,
    NEED_FRAMES,
    NEED_PAGE,
    OK,
    STATE_PRIVATE,
    WRITE,
)
from memvirt.mmu.entry import (
    ACCESSED,
    CR4_PSE,
    DIRTY,
    EFER_NXE,
    ENTRY_ADDRESS_MASK,
    MODE_2LEVEL,
    MODE_4LEVEL,
    MODE_5LEVEL,
    MODE_OFF,
    MODE_PAE,
    NO_EXECUTE,
    PRESENT,
    SHADOW_LARGE_SHIFT,
    USER,
    WRITABLE,
)
from memvirt.mmu.guest_walk import guest_walk, paging_mode
from memvirt.mmu.native import load8, load32
from memvirt.mmu.second_level import MISS
from memvirt.mmu.shadow_walk import checked, large_page_bytes, shadow_walk
from memvirt.vmm.frames import FRAMES_PER_FAULT, resolve_page

from .shadow_table import (
    drop_entry,
    entry_is_current,
    find_shadow_page,
    is_unsynchronized,
    new_shadow_page,
    read_entry,
    set_entry,
    shadow_index,
    shadow_mpn,
    synchronize,
    unsynchronize,
    zap_all,
)

_ALL_RIGHTS = PRESENT | WRITABLE | USER | ACCESSED


@njit(nogil=True, cache=True)
def _table_ppn(mode: int, entry: int) -> int:
    return (entry & (0xFFFF_F000 if mode == MODE_2LEVEL else ENTRY_ADDRESS_MASK)) >> 12


@njit(nogil=True, cache=True)
def _find_or_new(vm: Any, ppn: int, level: int, part: int, direct: int, mode: int) -> int:
    index = find_shadow_page(vm, ppn, level, part, direct)
    if index < 0:
        index = new_shadow_page(vm, ppn, level, part, direct, mode)
    return index


@njit(nogil=True, cache=True)
def mode_signature(vm: Any) -> int:
    """What besides CR3 the meaning of guest tables depends on; a change zaps the shadow."""
    mode = paging_mode(vm.cr0, vm.cr4, vm.efer)
    if mode == MODE_OFF:
        return mode
    return mode | (vm.cr4 & CR4_PSE) << 4 | (vm.efer & EFER_NXE) << 4


@njit(nogil=True, cache=True)
def select_root(vm: Any) -> int:
    """Make the shadow root match CR3 and the paging mode: OK, or FLUSH_AND_RETRY.

    The guest's load of CR3 has flushed the processor's translations, so guest tables can be
    traced again without a further flush.
    """
    signature = mode_signature(vm)
    if vm.shadow_root_index >= 0 and signature == vm.shadow_mode and vm.cr3 == vm.shadow_root_cr3:
        return OK
    if vm.reserve_count < FRAMES_PER_FAULT:
        return NEED_FRAMES
    if signature != vm.shadow_mode and vm.shadow_used > 0:
        zap_all(vm)
        return FLUSH_AND_RETRY
    if vm.unsynchronized_count > 0:
        synchronize(vm)
    mode = paging_mode(vm.cr0, vm.cr4, vm.efer)
    vm.shadow_levels = 5 if mode == MODE_5LEVEL else 4
    if mode >= MODE_4LEVEL:
        root = _find_or_new(vm, (vm.cr3 & ENTRY_ADDRESS_MASK) >> 12, mode, 0, 0, mode)
    elif mode == MODE_OFF:
        root = _find_or_new(vm, 0, 4, 0, 1, mode)
    else:
        # The four-level table of a 32-bit guest has a top level no guest table stands behind.
        root = _find_or_new(vm, (vm.cr3 & 0xFFFF_F000) >> 12, 4, (vm.cr3 >> 5) & 127, 1, mode)
    if root < 0:
        zap_all(vm)
        return FLUSH_AND_RETRY
    vm.shadow_mode = signature
    vm.shadow_root_cr3 = vm.cr3
    vm.shadow_root_index = root
    vm.shadow_root = shadow_mpn(vm, root)
    vm.root_switches += 1
    if vm.shadow_stale:
        return FLUSH_AND_RETRY
    return OK


@njit(nogil=True, cache=True)
def revalidating_walk(vm: Any, gva: int, access: int) -> int:
    """As ``shadow_walk``, dropping entries that unsynchronized guest tables no longer back."""
    index = vm.shadow_root_index
    rights = PRESENT | USER | WRITABLE
    no_execute = 0
    for step in range(vm.shadow_levels):
        level = vm.shadow_levels - step
        slot = (gva >> (9 * level + 3)) & 511
        entry = read_entry(vm, index, slot)
        vm.walk_references += 1
        if entry & PRESENT == 0:
            return MISS
        if is_unsynchronized(vm, index) and not entry_is_current(vm, index, slot):
            drop_entry(vm, index, slot)
            return MISS
        rights &= entry
        no_execute |= entry & NO_EXECUTE
        if level == 1:
            vm.out_permissions = rights | no_execute
            vm.out_large_page = large_page_bytes(entry)
            frame = entry & ENTRY_ADDRESS_MASK
            return int(checked(vm, frame | (gva & 0xFFF), access))
        index = shadow_index(vm, entry)
    return MISS


@njit(nogil=True, cache=True)
def _guest_rights(entry: int, dirty_matters: bool) -> int:
    rights = PRESENT | ACCESSED | (entry & (USER | WRITABLE | NO_EXECUTE))
    if dirty_matters:
        if entry & DIRTY == 0:
            rights &= ~WRITABLE
        else:
            rights |= DIRTY
    return rights


@njit(nogil=True, cache=True)
def _child(vm: Any, mode: int, level: int, slot: int) -> int:
    """The shadow page that the walked address needs below ``level``, or -1."""
    leaf = vm.walk_leaf_level if mode != MODE_OFF else 9
    guest_top = mode if mode != MODE_OFF else 0
    if level > guest_top and mode != MODE_OFF:  # no guest table stands at this level
        cr3_ppn = (vm.cr3 & 0xFFFF_F000) >> 12
        if mode == MODE_PAE:
            return _find_or_new(vm, cr3_ppn, 3, (vm.cr3 >> 5) & 127, 0, mode)
        if level == 4:
            return _find_or_new(vm, cr3_ppn, 3, 0, 1, mode)
        return _find_or_new(vm, cr3_ppn, 2, slot & 3, 0, mode)
    if level > leaf:
        part = slot & 1 if mode == MODE_2LEVEL else 0
        return _find_or_new(vm, _table_ppn(mode, vm.walk_entry[level]), level - 1, part, 0, mode)
    shift = 9 * level + 3
    return _find_or_new(vm, (vm.walk_gpa >> shift) << (shift - 12), level - 1, 0, 1, mode)


@njit(nogil=True, cache=True)
def _descend(vm: Any, mode: int, index: int, level: int, slot: int) -> int:
    """Make the non-leaf entry at ``slot`` right for the walked address; its child, or -1."""
    child = _child(vm, mode, level, slot)
    if child < 0:
        return -1
    rights, copy = _ALL_RIGHTS, 0
    if mode != MODE_OFF and level <= mode and level >= vm.walk_leaf_level:
        copy = vm.walk_entry[level]
        if mode == MODE_PAE and level == 3:
            rights = _ALL_RIGHTS
        else:
            rights = _guest_rights(copy, level == vm.walk_leaf_level)
    wanted = rights | (shadow_mpn(vm, child) << 12)
    entry = read_entry(vm, index, slot)
    if entry & PRESENT:
        if entry == wanted and (
            not is_unsynchronized(vm, index) or entry_is_current(vm, index, slot)
        ):
            return child
        drop_entry(vm, index, slot)
    set_entry(vm, index, slot, wanted, copy, child)
    return child


@njit(nogil=True, cache=True)
def _fill(vm: Any, mode: int, gva: int, ppn: int) -> bool:
    """Install the shadow entries for a successful guest walk; False if the pool is used up."""
    index = vm.shadow_root_index
    for step in range(vm.shadow_levels - 1):
        level = vm.shadow_levels - step
        index = _descend(vm, mode, index, level, (gva >> (9 * level + 3)) & 511)
        if index < 0:
            return False
    slot = (gva >> 12) & 511
    rights, copy = _ALL_RIGHTS | DIRTY, 0
    if mode != MODE_OFF and vm.walk_leaf_level == 1:
        copy = vm.walk_entry[1]
        rights = _guest_rights(copy, True)
    elif mode != MODE_OFF:
        kind = 3 if vm.walk_page_bytes == 1 << 30 else vm.walk_page_bytes >> 21
        rights |= kind << SHADOW_LARGE_SHIFT
    if mode == MODE_2LEVEL:
        rights &= ~NO_EXECUTE
    if (
        load8(vm.pmap_state_at + ppn) != STATE_PRIVATE
        or load8(vm.pmap_flags_at + ppn) & FLAG_TRACED
    ):
        rights &= ~WRITABLE
    if read_entry(vm, index, slot) & PRESENT:
        drop_entry(vm, index, slot)
    frame = load32(vm.pmap_frame_at + ppn * 4)
    set_entry(vm, index, slot, rights | (frame << 12), copy, ppn)
    return True


@njit(nogil=True, cache=True)
def shadow_fault(vm: Any, gva: int, access: int) -> int:
    """Resolve a miss in the shadow table.

    OK with the machine address in ``out_machine_address`` and the rights in ``out_permissions``
    (frame -1 if ``walk_gpa`` is no memory), or the status for the caller's caller.
    """
    if vm.reserve_count < FRAMES_PER_FAULT:
        return NEED_FRAMES
    references = vm.walk_references
    status = guest_walk(vm, gva, access)
    while status == NEED_PAGE:  # a guest table out of reach: its page is missing or shared
        status = resolve_page(vm, vm.violation_gpa >> 12, vm.violation_qualification == 2)
        if status != OK:
            break
        status = guest_walk(vm, gva, access)
    vm.guest_walk_references += vm.walk_references - references
    vm.walk_references = references
    if status != OK:
        return status
    ppn = vm.walk_gpa >> 12
    if ppn >= vm.guest_pages:
        vm.out_machine_address = -1
        return OK
    status = resolve_page(vm, ppn, access == WRITE)
    if status != OK:
        return status
    if access == WRITE and load8(vm.pmap_flags_at + ppn) & FLAG_TRACED:
        unsynchronize(vm, ppn)
    if not _fill(vm, paging_mode(vm.cr0, vm.cr4, vm.efer), gva, ppn):
        zap_all(vm)
        return FLUSH_AND_RETRY
    vm.hidden_faults += 1
    vm.out_large_page = vm.walk_page_bytes if 1 << 12 < vm.walk_page_bytes < 1 << 32 else 0
    if vm.shadow_stale:
        return FLUSH_AND_RETRY
    frame = load32(vm.pmap_frame_at + ppn * 4)
    vm.out_machine_address = (frame << 12) | (gva & 0xFFF)
    rights = PRESENT | (vm.walk_no_execute * NO_EXECUTE)
    if vm.walk_user:
        rights |= USER
    if access == WRITE or (
        vm.walk_writable
        and vm.walk_dirty
        and load8(vm.pmap_state_at + ppn) == STATE_PRIVATE
        and load8(vm.pmap_flags_at + ppn) & FLAG_TRACED == 0
    ):
        # A supervisor write with CR0.WP clear is granted for this translation only.
        rights |= WRITABLE
    vm.out_permissions = rights
    return OK


@njit(nogil=True, cache=True)
def shadow_access(vm: Any, gva: int, access: int) -> int:
    """One access in shadow mode: OK with ``out_machine_address``, or a status."""
    status = select_root(vm)
    if status != OK:
        return int(status)
    vm.walks += 1
    if vm.unsynchronized_count == 0:
        address = shadow_walk(vm, gva, access)
    else:
        address = revalidating_walk(vm, gva, access)
    if address != MISS:
        vm.out_machine_address = address
        return OK
    return int(shadow_fault(vm, gva, access))
