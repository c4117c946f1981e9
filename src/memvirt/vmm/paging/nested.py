# SPDX-License-Identifier: Apache-2.0
"""Nested paging: one table per VM from guest-physical to machine pages, in EPT format.

The guest edits its own tables freely. The only exits are EPT violations, resolved here in
compiled code unless the VMM has to bring a page back or unshare it.
"""

from __future__ import annotations

from memvirt.address import (
    GuestPhysicalAddress,
    GuestVirtualAddress,
    MachineAddress,
    MachinePageNumber,
    PhysicalPageNumber,
    PpnArray,
    guest_physical_address,
    physical_page_number,
)
from memvirt.compiled import compiled
from memvirt.mmu.access import MISCONFIGURED, NEED_FRAMES, NEED_PAGE, OK, WRITE
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
from memvirt.mmu.page_state import FLAGS_UNTIL_TOUCHED, STATE_PRIVATE
from memvirt.mmu.second_level import MISS, ept_walk, forget_nested
from memvirt.mmu.walk_cache import cached_walk, forget_walks, remember_walk
from memvirt.vmm.frames import FRAMES_PER_FAULT, KIND_NESTED, resolve_page, take_frame
from memvirt.vmm.vmm_state import VmmState


@compiled
def nested_entry_at(vmm: VmmState, gpa: GuestPhysicalAddress, leaf: int, create: bool) -> int:
    """Host address of the nested entry of level ``leaf`` for ``gpa``; 0 if its table is missing.

    With ``create`` missing tables are taken from the reserve, which the caller has checked. The
    caller knows that no large page lies above ``leaf``.
    """
    mmu = vmm.mmu
    table = mmu.nested_root << 12
    for level in range(4, leaf, -1):
        at = mmu.memory_at + table + ((gpa >> (9 * level + 3)) & 511) * 8
        entry = load64(at)
        if entry & EPT_RIGHTS == 0:
            if not create:
                return 0
            mpn = take_frame(vmm, KIND_NESTED, level - 1)
            if mpn < 0:
                return 0
            vmm.nested_tables += 1
            entry = (mpn << 12) | EPT_RIGHTS
            store64(at, entry)
        table = entry & ENTRY_ADDRESS_MASK
    return mmu.memory_at + table + ((gpa >> (9 * leaf + 3)) & 511) * 8


@compiled
def drop_nested_entry(vmm: VmmState, ppn: PhysicalPageNumber) -> int:
    """Clear the nested entry that maps ``ppn``, for all of a large page; 1 if there was one.

    Obligation: the caller flushes.
    """
    at = nested_entry_at(vmm, guest_physical_address(ppn), 2, False)
    if at == 0:
        return 0
    if load64(at) & EPT_LARGE == 0:
        at = nested_entry_at(vmm, guest_physical_address(ppn), 1, False)
    if at == 0 or load64(at) == 0:
        return 0
    if load64(at) & EPT_LARGE:  # else it is of level 1, which is not cached
        forget_nested(vmm.mmu, guest_physical_address(ppn))
    store64(at, 0)
    forget_walks(vmm.mmu)
    vmm.entries_dropped += 1
    return 1


@compiled
def drop_nested_entries(vmm: VmmState, ppns: PpnArray) -> int:
    """Clear the nested entries that map ``ppns``; returns how many.

    Obligation: the caller flushes.
    """
    dropped = 0
    for i in range(ppns.size):
        dropped += drop_nested_entry(vmm, ppns[i])
    return dropped


@compiled
def _map_large_page(vmm: VmmState, first_ppn: PhysicalPageNumber) -> None:
    """Map 512 private pages in a run of frames by one entry of level 2.

    It cannot be seen which of them are touched from now on: all count as touched.
    """
    mmu = vmm.mmu
    at = nested_entry_at(vmm, guest_physical_address(first_ppn), 2, True)
    frame = load32(mmu.pmap_frame_at + first_ppn * 4)
    store64(at, (frame << 12) | EPT_LARGE | EPT_WRITE_BACK | EPT_RIGHTS)
    forget_nested(mmu, guest_physical_address(first_ppn))
    forget_walks(mmu)
    for ppn in range(first_ppn, first_ppn + 512):
        flags = load8(mmu.pmap_flags_at + ppn)
        store8(mmu.pmap_flags_at + ppn, flags & ~FLAGS_UNTIL_TOUCHED)


@compiled
def drop_empty_table(vmm: VmmState, ppn: PhysicalPageNumber) -> MachinePageNumber:
    """Unlink the last-level table for ``ppn``, whose entries are all clear; its MPN, or -1."""
    at = nested_entry_at(vmm, guest_physical_address(ppn), 2, False)
    if at == 0:
        return MachinePageNumber(-1)
    entry = load64(at)
    if entry & EPT_RIGHTS == 0 or entry & EPT_LARGE:
        return MachinePageNumber(-1)
    store64(at, 0)
    forget_nested(vmm.mmu, guest_physical_address(ppn))
    vmm.nested_tables -= 1
    return MachinePageNumber((entry & ENTRY_ADDRESS_MASK) >> 12)


@compiled
def nested_fault(vmm: VmmState) -> int:
    """Resolve the EPT violation in ``violation_*``: OK to walk again, or a status."""
    mmu = vmm.mmu
    if mmu.violation_qualification & EPT_MISCONFIGURATION:
        return MISCONFIGURED  # never made by the VMM
    if vmm.reserve_count < FRAMES_PER_FAULT:
        return NEED_FRAMES
    ppn = physical_page_number(mmu.violation_gpa)
    status = resolve_page(vmm, ppn, mmu.violation_qualification & (1 << WRITE) != 0)
    if status != OK:
        return int(status)
    if load8(vmm.pmap_large_at + (ppn >> 9)):
        _map_large_page(vmm, PhysicalPageNumber(ppn & ~511))
        vmm.hidden_faults += 1
        return OK
    at = nested_entry_at(vmm, mmu.violation_gpa, 1, True)
    rights = EPT_READ | EPT_EXECUTE
    if load8(mmu.pmap_state_at + ppn) == STATE_PRIVATE:
        rights |= EPT_WRITE
    store64(at, (load32(mmu.pmap_frame_at + ppn * 4) << 12) | EPT_WRITE_BACK | rights)
    vmm.hidden_faults += 1
    return OK


@compiled
def nested_access(vmm: VmmState, gva: GuestVirtualAddress, access: int) -> int:
    """One access in nested mode: OK with ``out_machine_address``, or a status.

    ``out_permissions`` is in native bits; the frame is -1 if ``walk_gpa`` is no memory.
    """
    mmu = vmm.mmu
    vmm.walks += 1
    references = mmu.walk_references
    while True:
        # A walk that begins anew after a violation counts once, as the one that succeeds.
        mmu.walk_references = references
        if cached_walk(mmu, gva, access):
            status = OK
        else:
            status = guest_walk(mmu, gva, access)
            if status == OK:
                remember_walk(mmu, gva)
        if status == NEED_PAGE:
            status = nested_fault(vmm)
            if status != OK:
                return int(status)
            continue
        if status != OK:
            return int(status)
        if mmu.walk_gpa >> 12 >= mmu.guest_pages:
            mmu.out_machine_address = MachineAddress(-1)
            return OK
        address = ept_walk(vmm.mmu, mmu.walk_gpa, access)
        if address != MISS:
            break
        status = nested_fault(vmm)
        if status != OK:
            return int(status)
    rights = PRESENT | (mmu.walk_no_execute * NO_EXECUTE)
    if mmu.walk_user:
        rights |= USER
    dirty_writable = mmu.walk_writable != 0 and mmu.walk_dirty != 0
    if access == WRITE or (dirty_writable and mmu.out_permissions & EPT_WRITE):
        rights |= WRITABLE
    mmu.out_machine_address = address
    mmu.out_permissions = rights
    mmu.out_large_page = mmu.walk_page_bytes if 1 << 12 < mmu.walk_page_bytes < 1 << 32 else 0
    return OK
