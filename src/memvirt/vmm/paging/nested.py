# SPDX-License-Identifier: Apache-2.0
"""Nested paging: one table per VM from guest-physical to machine pages, in EPT format.

The guest edits its own tables freely. The only exits are EPT violations, resolved here in
compiled code unless the VMM has to bring a page back or unshare it.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from memvirt.mmu.control import (
    FLAGS_UNTIL_TOUCHED,
    NEED_FRAMES,
    NEED_PAGE,
    OK,
    STATE_PRIVATE,
    WRITE,
)
from memvirt.mmu.entry import (
    ENTRY_ADDRESS_MASK,
    EPT_EXECUTE,
    EPT_LARGE,
    EPT_MISCONFIGURATION,
    EPT_READ,
    EPT_RIGHTS,
    EPT_WRITE,
    EPT_WRITE_BACK,
    NO_EXECUTE,
    PRESENT,
    USER,
    WRITABLE,
)
from memvirt.mmu.guest_walk import guest_walk
from memvirt.mmu.native import load8, load32, load64, store8, store64
from memvirt.mmu.second_level import MISS, ept_walk, forget_nested
from memvirt.vmm.frames import FRAMES_PER_FAULT, KIND_NESTED, resolve_page, take_frame


@njit(nogil=True, cache=True)
def nested_entry_at(vm: Any, gpa: int, leaf: int, create: bool) -> int:
    """Host address of the nested entry of level ``leaf`` for ``gpa``; 0 if its table is missing.

    With ``create`` missing tables are taken from the reserve, which the caller has checked. The
    caller knows that no large page lies above ``leaf``.
    """
    table = vm.nested_root << 12
    for level in range(4, leaf, -1):
        at = vm.memory_at + table + ((gpa >> (9 * level + 3)) & 511) * 8
        entry = load64(at)
        if entry & EPT_RIGHTS == 0:
            if not create:
                return 0
            mpn = take_frame(vm, KIND_NESTED, level - 1)
            if mpn < 0:
                return 0
            vm.nested_tables += 1
            entry = (mpn << 12) | EPT_RIGHTS
            store64(at, entry)
        table = entry & ENTRY_ADDRESS_MASK
    return vm.memory_at + table + ((gpa >> (9 * leaf + 3)) & 511) * 8


@njit(nogil=True, cache=True)
def drop_nested_entry(vm: Any, ppn: int) -> int:
    """Clear the nested entry that maps ``ppn``, for all of a large page; 1 if there was one.

    Obligation: the caller flushes.
    """
    at = nested_entry_at(vm, ppn << 12, 2, False)
    if at == 0:
        return 0
    if load64(at) & EPT_LARGE == 0:
        at = nested_entry_at(vm, ppn << 12, 1, False)
    if at == 0 or load64(at) == 0:
        return 0
    store64(at, 0)
    forget_nested(vm, ppn)
    vm.entries_dropped += 1
    return 1


@njit(nogil=True, cache=True)
def _map_large_page(vm: Any, first_ppn: int) -> None:
    """Map 512 private pages in a run of frames by one entry of level 2.

    It cannot be seen which of them are touched from now on: all count as touched.
    """
    at = nested_entry_at(vm, first_ppn << 12, 2, True)
    frame = load32(vm.pmap_frame_at + first_ppn * 4)
    store64(at, (frame << 12) | EPT_LARGE | EPT_WRITE_BACK | EPT_RIGHTS)
    for ppn in range(first_ppn, first_ppn + 512):
        flags = load8(vm.pmap_flags_at + ppn)
        store8(vm.pmap_flags_at + ppn, flags & ~FLAGS_UNTIL_TOUCHED)


@njit(nogil=True, cache=True)
def drop_empty_table(vm: Any, ppn: int) -> int:
    """Unlink the last-level table for ``ppn``, whose entries are all clear; its MPN, or -1."""
    at = nested_entry_at(vm, ppn << 12, 2, False)
    if at == 0:
        return -1
    entry = load64(at)
    if entry & EPT_RIGHTS == 0 or entry & EPT_LARGE:
        return -1
    store64(at, 0)
    vm.nested_tables -= 1
    return (entry & ENTRY_ADDRESS_MASK) >> 12


@njit(nogil=True, cache=True)
def nested_fault(vm: Any) -> int:
    """Resolve the EPT violation in ``violation_*``: OK to walk again, or a status."""
    if vm.violation_qualification & EPT_MISCONFIGURATION:
        return NEED_PAGE  # never made by the VMM: Python reports it
    if vm.reserve_count < FRAMES_PER_FAULT:
        return NEED_FRAMES
    ppn = vm.violation_gpa >> 12
    status = resolve_page(vm, ppn, vm.violation_qualification & (1 << WRITE) != 0)
    if status != OK:
        return int(status)
    if load8(vm.pmap_large_at + (ppn >> 9)):
        _map_large_page(vm, ppn & ~511)
        vm.hidden_faults += 1
        return OK
    at = nested_entry_at(vm, vm.violation_gpa, 1, True)
    rights = EPT_READ | EPT_EXECUTE
    if load8(vm.pmap_state_at + ppn) == STATE_PRIVATE:
        rights |= EPT_WRITE
    store64(at, (load32(vm.pmap_frame_at + ppn * 4) << 12) | EPT_WRITE_BACK | rights)
    vm.hidden_faults += 1
    return OK


@njit(nogil=True, cache=True)
def nested_access(vm: Any, gva: int, access: int) -> int:
    """One access in nested mode: OK with ``out_machine_address``, or a status.

    ``out_permissions`` is in native bits; the frame is -1 if ``walk_gpa`` is no memory.
    """
    vm.walks += 1
    while True:
        status = guest_walk(vm, gva, access)
        if status == NEED_PAGE:
            status = nested_fault(vm)
            if status != OK:
                return int(status)
            continue
        if status != OK:
            return int(status)
        if vm.walk_gpa >> 12 >= vm.guest_pages:
            vm.out_machine_address = -1
            return OK
        address = ept_walk(vm, vm.walk_gpa, access)
        if address != MISS:
            break
        status = nested_fault(vm)
        if status != OK:
            return int(status)
    rights = PRESENT | (vm.walk_no_execute * NO_EXECUTE)
    if vm.walk_user:
        rights |= USER
    dirty_writable = vm.walk_writable != 0 and vm.walk_dirty != 0
    if access == WRITE or (dirty_writable and vm.out_permissions & EPT_WRITE):
        rights |= WRITABLE
    vm.out_machine_address = address
    vm.out_permissions = rights
    vm.out_large_page = vm.walk_page_bytes if 1 << 12 < vm.walk_page_bytes < 1 << 32 else 0
    return OK
