# SPDX-License-Identifier: Apache-2.0
"""Shadow paging: hidden faults, traces, roots. The guest's tables in, shadow entries out.

A miss in the shadow table is a *hidden* fault if the guest's tables allow the access: the entry is
filled here, in compiled code, and the guest never knows. If they deny it, it is a *true* fault.
An entry exists only for accessed guest entries and is read-only until the guest entry is dirty,
its PPN exclusively owned, and not a traced page table.
"""

from __future__ import annotations

from memvirt.address import (
    GuestVirtualAddress,
    MachineAddress,
    MachinePageNumber,
    PhysicalPageNumber,
    machine_address,
    physical_page_number,
)
from memvirt.compiled import compiled
from memvirt.mmu.access import FLUSH_AND_RETRY, NEED_FRAMES, NEED_PAGE, OK, WRITE
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
from memvirt.mmu.page_state import FLAG_TRACED, STATE_PRIVATE
from memvirt.mmu.second_level import MISS
from memvirt.mmu.shadow_walk import checked, large_page_bytes, shadow_walk
from memvirt.vmm.frames import FRAMES_PER_FAULT, resolve_page
from memvirt.vmm.vmm_state import VmmState

from .shadow_table import (
    FROM_GUEST_TABLE,
    WITHOUT_GUEST_TABLE,
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


@compiled
def _table_ppn(mode: int, entry: int) -> PhysicalPageNumber:
    address = entry & (0xFFFF_F000 if mode == MODE_2LEVEL else ENTRY_ADDRESS_MASK)
    return PhysicalPageNumber(address >> 12)


@compiled
def _find_or_new(
    vmm: VmmState, ppn: PhysicalPageNumber, level: int, part: int, direct: int, mode: int
) -> int:
    index = find_shadow_page(vmm, ppn, level, part, direct)
    if index < 0:
        index = new_shadow_page(vmm, ppn, level, part, direct, mode)
    return index


@compiled
def mode_signature(vmm: VmmState) -> int:
    """What besides CR3 the meaning of guest tables depends on; a change zaps the shadow."""
    mmu = vmm.mmu
    mode = paging_mode(mmu.cr0, mmu.cr4, mmu.efer)
    if mode == MODE_OFF:
        return mode
    return mode | (mmu.cr4 & CR4_PSE) << 4 | (mmu.efer & EFER_NXE) << 4


@compiled
def select_root(vmm: VmmState) -> int:
    """Make the shadow root match CR3 and the paging mode: OK, or FLUSH_AND_RETRY.

    The guest's load of CR3 has flushed the processor's translations, so guest tables can be
    traced again without a further flush.
    """
    shadow = vmm.shadow
    mmu = vmm.mmu
    signature = mode_signature(vmm)
    if shadow.root_index >= 0 and signature == shadow.mode and mmu.cr3 == shadow.root_cr3:
        return OK
    if vmm.reserve_count < FRAMES_PER_FAULT:
        return NEED_FRAMES
    if signature != shadow.mode and shadow.used > 0:
        zap_all(vmm)
        return FLUSH_AND_RETRY
    if shadow.unsynchronized_count > 0:
        synchronize(vmm)
    mode = paging_mode(mmu.cr0, mmu.cr4, mmu.efer)
    mmu.shadow_levels = 5 if mode == MODE_5LEVEL else 4
    if mode >= MODE_4LEVEL:
        root = _find_or_new(vmm, _table_ppn(mode, mmu.cr3), mode, 0, FROM_GUEST_TABLE, mode)
    elif mode == MODE_OFF:
        root = _find_or_new(vmm, PhysicalPageNumber(0), 4, 0, WITHOUT_GUEST_TABLE, mode)
    else:
        # The four-level table of a 32-bit guest has a top level no guest table stands behind.
        cr3_ppn = _table_ppn(MODE_2LEVEL, mmu.cr3)
        root = _find_or_new(vmm, cr3_ppn, 4, (mmu.cr3 >> 5) & 127, WITHOUT_GUEST_TABLE, mode)
    if root < 0:
        zap_all(vmm)
        return FLUSH_AND_RETRY
    shadow.mode = signature
    shadow.root_cr3 = mmu.cr3
    shadow.root_index = root
    mmu.shadow_root = shadow_mpn(vmm, root)
    vmm.root_switches += 1
    if shadow.stale:
        return FLUSH_AND_RETRY
    return OK


@compiled
def revalidating_walk(vmm: VmmState, gva: GuestVirtualAddress, access: int) -> MachineAddress:
    """As ``shadow_walk``, dropping entries that unsynchronized guest tables no longer back."""
    mmu = vmm.mmu
    index = vmm.shadow.root_index
    rights = PRESENT | USER | WRITABLE
    no_execute = 0
    for step in range(mmu.shadow_levels):
        level = mmu.shadow_levels - step
        slot = (gva >> (9 * level + 3)) & 511
        entry = read_entry(vmm, index, slot)
        mmu.walk_references += 1
        if entry & PRESENT == 0:
            return MISS
        if is_unsynchronized(vmm, index) and not entry_is_current(vmm, index, slot):
            drop_entry(vmm, index, slot)
            return MISS
        rights &= entry
        no_execute |= entry & NO_EXECUTE
        if level == 1:
            mmu.out_permissions = rights | no_execute
            mmu.out_large_page = large_page_bytes(entry)
            frame = entry & ENTRY_ADDRESS_MASK
            address = MachineAddress(frame | (gva & 0xFFF))
            return MachineAddress(checked(mmu, address, access))
        index = shadow_index(vmm, entry)
    return MISS


@compiled
def _guest_rights(entry: int, dirty_matters: bool) -> int:
    rights = PRESENT | ACCESSED | (entry & (USER | WRITABLE | NO_EXECUTE))
    if dirty_matters:
        if entry & DIRTY == 0:
            rights &= ~WRITABLE
        else:
            rights |= DIRTY
    return rights


@compiled
def _child(vmm: VmmState, mode: int, level: int, slot: int) -> int:
    """The shadow page that the walked address needs below ``level``, or -1."""
    mmu = vmm.mmu
    leaf = mmu.walk_leaf_level if mode != MODE_OFF else 9
    guest_top = mode if mode != MODE_OFF else 0
    if level > guest_top and mode != MODE_OFF:  # no guest table stands at this level
        cr3_ppn = _table_ppn(MODE_2LEVEL, mmu.cr3)
        if mode == MODE_PAE:
            return _find_or_new(vmm, cr3_ppn, 3, (mmu.cr3 >> 5) & 127, FROM_GUEST_TABLE, mode)
        if level == 4:
            return _find_or_new(vmm, cr3_ppn, 3, 0, WITHOUT_GUEST_TABLE, mode)
        return _find_or_new(vmm, cr3_ppn, 2, slot & 3, FROM_GUEST_TABLE, mode)
    if level > leaf:
        part = slot & 1 if mode == MODE_2LEVEL else 0
        return _find_or_new(
            vmm, _table_ppn(mode, mmu.walk_entry[level]), level - 1, part, FROM_GUEST_TABLE, mode
        )
    shift = 9 * level + 3
    first_ppn = PhysicalPageNumber((mmu.walk_gpa >> shift) << (shift - 12))
    direct = WITHOUT_GUEST_TABLE if mode == MODE_OFF else mmu.walk_page_bytes
    return _find_or_new(vmm, first_ppn, level - 1, 0, direct, mode)


@compiled
def _descend(vmm: VmmState, mode: int, index: int, level: int, slot: int) -> int:
    """Make the non-leaf entry at ``slot`` right for the walked address; its child, or -1."""
    mmu = vmm.mmu
    child = _child(vmm, mode, level, slot)
    if child < 0:
        return -1
    rights, copy = _ALL_RIGHTS, 0
    if mode != MODE_OFF and level <= mode and level >= mmu.walk_leaf_level:
        copy = mmu.walk_entry[level]
        if mode == MODE_PAE and level == 3:
            rights = _ALL_RIGHTS
        else:
            rights = _guest_rights(copy, level == mmu.walk_leaf_level)
    wanted = rights | (shadow_mpn(vmm, child) << 12)
    entry = read_entry(vmm, index, slot)
    if entry & PRESENT:
        if entry == wanted and (
            not is_unsynchronized(vmm, index) or entry_is_current(vmm, index, slot)
        ):
            return child
        drop_entry(vmm, index, slot)
    set_entry(vmm, index, slot, wanted, copy, child)
    return child


@compiled
def _fill(vmm: VmmState, mode: int, gva: GuestVirtualAddress, ppn: PhysicalPageNumber) -> bool:
    """Install the shadow entries for a successful guest walk; False if the pool is used up."""
    mmu = vmm.mmu
    index = vmm.shadow.root_index
    for step in range(mmu.shadow_levels - 1):
        level = mmu.shadow_levels - step
        index = _descend(vmm, mode, index, level, (gva >> (9 * level + 3)) & 511)
        if index < 0:
            return False
    slot = (gva >> 12) & 511
    rights, copy = _ALL_RIGHTS | DIRTY, 0
    if mode != MODE_OFF and mmu.walk_leaf_level == 1:
        copy = mmu.walk_entry[1]
        rights = _guest_rights(copy, True)
    elif mode != MODE_OFF:
        kind = 3 if mmu.walk_page_bytes == 1 << 30 else mmu.walk_page_bytes >> 21
        rights |= kind << SHADOW_LARGE_SHIFT
    if mode == MODE_2LEVEL:
        rights &= ~NO_EXECUTE
    if (
        load8(mmu.pmap_state_at + ppn) != STATE_PRIVATE
        or load8(mmu.pmap_flags_at + ppn) & FLAG_TRACED
    ):
        rights &= ~WRITABLE
    if read_entry(vmm, index, slot) & PRESENT:
        drop_entry(vmm, index, slot)
    frame = load32(mmu.pmap_frame_at + ppn * 4)
    set_entry(vmm, index, slot, rights | (frame << 12), copy, ppn)
    return True


@compiled
def shadow_fault(vmm: VmmState, gva: GuestVirtualAddress, access: int) -> int:
    """Resolve a miss in the shadow table.

    OK with the machine address in ``out_machine_address`` and the rights in ``out_permissions``
    (frame -1 if ``walk_gpa`` is no memory), or the status for the caller's caller.
    """
    mmu = vmm.mmu
    if vmm.reserve_count < FRAMES_PER_FAULT:
        return NEED_FRAMES
    references = mmu.walk_references
    status = guest_walk(mmu, gva, access)
    while status == NEED_PAGE:  # a guest table out of reach: its page is missing or shared
        status = resolve_page(
            vmm, physical_page_number(mmu.violation_gpa), mmu.violation_qualification == 2
        )
        if status != OK:
            break
        status = guest_walk(mmu, gva, access)
    vmm.guest_walk_references += mmu.walk_references - references
    mmu.walk_references = references
    if status != OK:
        return status
    ppn = physical_page_number(mmu.walk_gpa)
    if ppn >= mmu.guest_pages:
        mmu.out_machine_address = MachineAddress(-1)
        return OK
    status = resolve_page(vmm, ppn, access == WRITE)
    if status != OK:
        return status
    if access == WRITE and load8(mmu.pmap_flags_at + ppn) & FLAG_TRACED:
        unsynchronize(vmm, ppn)
    if not _fill(vmm, paging_mode(mmu.cr0, mmu.cr4, mmu.efer), gva, ppn):
        zap_all(vmm)
        return FLUSH_AND_RETRY
    vmm.hidden_faults += 1
    mmu.out_large_page = mmu.walk_page_bytes if 1 << 12 < mmu.walk_page_bytes < 1 << 32 else 0
    if vmm.shadow.stale:
        return FLUSH_AND_RETRY
    mpn = MachinePageNumber(load32(mmu.pmap_frame_at + ppn * 4))
    mmu.out_machine_address = machine_address(mpn, gva & 0xFFF)
    rights = PRESENT | (mmu.walk_no_execute * NO_EXECUTE)
    if mmu.walk_user:
        rights |= USER
    if access == WRITE or (
        mmu.walk_writable
        and mmu.walk_dirty
        and load8(mmu.pmap_state_at + ppn) == STATE_PRIVATE
        and load8(mmu.pmap_flags_at + ppn) & FLAG_TRACED == 0
    ):
        # A supervisor write with CR0.WP clear is granted for this translation only.
        rights |= WRITABLE
    mmu.out_permissions = rights
    return OK


@compiled
def shadow_access(vmm: VmmState, gva: GuestVirtualAddress, access: int) -> int:
    """One access in shadow mode: OK with ``out_machine_address``, or a status."""
    status = select_root(vmm)
    if status != OK:
        return int(status)
    vmm.walks += 1
    if vmm.shadow.unsynchronized_count == 0:
        address = shadow_walk(vmm.mmu, gva, access)
    else:
        address = revalidating_walk(vmm, gva, access)
    if address != MISS:
        vmm.mmu.out_machine_address = address
        return OK
    return int(shadow_fault(vmm, gva, access))
