# SPDX-License-Identifier: Apache-2.0
"""Shadow page tables as a structure: the cache of shadow pages and the reverse map.

A *shadow page* is one 512-entry table, in a frame of machine memory, derived from one guest table
(or part of one: 32-bit guest tables have 1024 entries) or, below a guest large page, from nothing
but the PPN range (a *direct* page). Shadow pages are found by (PPN, level, part, direct), so roots
and shared subtrees are cached across guest context switches. For a direct page ``direct`` is the
size of the guest page it lies in: its leaves tell the processor that size, and one frame may be
mapped by guest pages of several.

Every present entry is on one doubly linked list: a leaf on that of its PPN, a non-leaf on that of
the shadow page it points to. Links are indexed by entry (shadow page * 512 + slot), so unlinking
costs no search. A negative ``previous`` link is ``-(list head) - 2``.

Each shadow page keeps, beside every entry, the guest entry it was derived from. While its guest
table is traced (write-protected) the two agree; after the guest writes to it the shadow page is
*unsynchronized*: each use of one of its entries compares the copy with the guest's entry first.
"""

from __future__ import annotations

from memvirt.address import (
    GuestPhysicalAddress,
    MachinePageNumber,
    PhysicalPageNumber,
    PpnArray,
    guest_physical_address,
)
from memvirt.compiled import compiled
from memvirt.mmu.access import READ
from memvirt.mmu.entry import (
    ENTRY_ADDRESS_MASK,
    MODE_2LEVEL,
    MODE_PAE,
    PRESENT,
    WRITABLE,
)
from memvirt.mmu.native import load8, load32, load64, load_signed32, store8, store32, store64
from memvirt.mmu.page_state import FLAG_SHADOWED, FLAG_TRACED, FLAG_WRITE_CACHED
from memvirt.mmu.second_level import MISS, second_level
from memvirt.vmm.frames import KIND_SHADOW, take_frame
from memvirt.vmm.vmm_state import SHADOW_PAGE_BYTES, ShadowPage, VmmState, shadow_page_at

# Values of a shadow page's ``direct`` beside the bytes of a guest large page.
FROM_GUEST_TABLE = 0
WITHOUT_GUEST_TABLE = 1  # paging is off, or the level is above the guest's top table

# After so many trace faults a guest table stays unsynchronized: revalidating one entry per TLB
# fill is cheaper than tracing it again at each context switch.
TRACE_FAULT_LIMIT = 8


@compiled
def shadow_page(vmm: VmmState, index: int) -> ShadowPage:
    """The record of shadow page ``index``."""
    return shadow_page_at(vmm.shadow.pages_at + index * SHADOW_PAGE_BYTES)


@compiled
def shadow_mpn(vmm: VmmState, index: int) -> MachinePageNumber:
    return shadow_page(vmm, index).mpn


@compiled
def is_unsynchronized(vmm: VmmState, index: int) -> bool:
    return shadow_page(vmm, index).unsynchronized != 0


@compiled
def _bucket(vmm: VmmState, ppn: PhysicalPageNumber) -> int:
    return vmm.shadow.hash_at + (((ppn * 0x9E3779B1) >> 7) & vmm.shadow.hash_mask) * 4


@compiled
def find_shadow_page(
    vmm: VmmState, ppn: PhysicalPageNumber, level: int, part: int, direct: int
) -> int:
    """Index of the shadow page with this key, or -1."""
    index = load_signed32(_bucket(vmm, ppn))
    while index >= 0:
        page = shadow_page(vmm, index)
        if page.ppn == ppn and page.level == level and page.part == part and page.direct == direct:
            return index
        index = page.hash_next
    return -1


@compiled
def _entry_at(vmm: VmmState, index: int, slot: int) -> int:
    return vmm.mmu.memory_at + (shadow_page(vmm, index).mpn << 12) + slot * 8


@compiled
def read_entry(vmm: VmmState, index: int, slot: int) -> int:
    return load64(_entry_at(vmm, index, slot))


@compiled
def shadow_index(vmm: VmmState, entry: int) -> int:
    """Index of the shadow page that a present non-leaf entry points to."""
    return load_signed32(vmm.frame_detail_at + ((entry & ENTRY_ADDRESS_MASK) >> 12) * 4)


@compiled
def guest_entry_gpa(vmm: VmmState, index: int, slot: int) -> GuestPhysicalAddress:
    """Guest-physical address of the guest entry behind a slot of a non-direct shadow page."""
    page = shadow_page(vmm, index)
    base, mode, level, part = page.ppn << 12, page.mode, page.level, page.part
    if mode == MODE_2LEVEL:
        if level == 2:
            return GuestPhysicalAddress(base + (part * 256 + (slot >> 1)) * 4)
        return GuestPhysicalAddress(base + (part * 512 + slot) * 4)
    if mode == MODE_PAE and level == 3:
        return GuestPhysicalAddress(base + part * 32 + (slot & 3) * 8)
    return GuestPhysicalAddress(base + slot * 8)


@compiled
def _head_at(vmm: VmmState, index: int, target: int) -> int:
    """Address of the list head for an entry of shadow page ``index`` that maps ``target``."""
    if shadow_page(vmm, index).level == 1:
        return vmm.rmap_head_at + target * 4
    return vmm.shadow.parent_at + target * 4


@compiled
def set_entry(vmm: VmmState, index: int, slot: int, entry: int, copy: int, target: int) -> None:
    """Install a present entry in an empty slot and link it to its target.

    ``target`` is the PPN of a leaf, the shadow page index of a non-leaf; ``copy`` the guest entry
    it was derived from. Needs no flush: the slot was empty.
    """
    shadow = vmm.shadow
    store64(_entry_at(vmm, index, slot), entry)
    link = index * 512 + slot
    store64(shadow.copy_at + link * 8, copy)
    head = _head_at(vmm, index, target)
    first = load_signed32(head)
    store32(shadow.rmap_next_at + link * 4, first)
    store32(shadow.rmap_previous_at + link * 4, -target - 2)
    if first >= 0:
        store32(shadow.rmap_previous_at + first * 4, link)
    store32(head, link)


@compiled
def drop_entry(vmm: VmmState, index: int, slot: int) -> None:
    """Clear a present entry and unlink it.

    Obligation: a processor translation made through it may live on until it is flushed; the
    caller flushes unless the guest itself owes the flush.
    """
    shadow = vmm.shadow
    link = index * 512 + slot
    following = load_signed32(shadow.rmap_next_at + link * 4)
    previous = load_signed32(shadow.rmap_previous_at + link * 4)
    if following >= 0:
        store32(shadow.rmap_previous_at + following * 4, previous)
    if previous >= 0:
        store32(shadow.rmap_next_at + previous * 4, following)
    else:
        store32(_head_at(vmm, index, -previous - 2), following)
    store64(_entry_at(vmm, index, slot), 0)
    vmm.entries_dropped += 1


@compiled
def drop_mappings(vmm: VmmState, ppn: PhysicalPageNumber) -> int:
    """Clear every shadow entry that maps ``ppn``; returns how many. The caller flushes."""
    dropped = 0
    link = load_signed32(vmm.rmap_head_at + ppn * 4)
    while link >= 0:
        following = load_signed32(vmm.shadow.rmap_next_at + link * 4)
        drop_entry(vmm, link >> 9, link & 511)
        dropped += 1
        link = following
    return dropped


@compiled
def drop_mappings_of(vmm: VmmState, ppns: PpnArray) -> int:
    """Clear every shadow entry that maps one of ``ppns``; returns how many. The caller flushes."""
    dropped = 0
    for i in range(ppns.size):
        dropped += drop_mappings(vmm, ppns[i])
    return dropped


@compiled
def write_protect(vmm: VmmState, ppn: PhysicalPageNumber) -> None:
    """Make every shadow entry that maps ``ppn`` read-only, and note if a flush is due."""
    link = load_signed32(vmm.rmap_head_at + ppn * 4)
    while link >= 0:
        address = _entry_at(vmm, link >> 9, link & 511)
        store64(address, load64(address) & ~WRITABLE)
        link = load_signed32(vmm.shadow.rmap_next_at + link * 4)
    flags = load8(vmm.mmu.pmap_flags_at + ppn)
    if flags & FLAG_WRITE_CACHED:
        vmm.shadow.stale = 1
        flags &= ~FLAG_WRITE_CACHED
    store8(vmm.mmu.pmap_flags_at + ppn, flags | FLAG_TRACED | FLAG_SHADOWED)


@compiled
def _clear_table(vmm: VmmState, index: int) -> None:
    base = _entry_at(vmm, index, 0)
    for slot in range(512):
        store64(base + slot * 8, 0)


@compiled
def new_shadow_page(
    vmm: VmmState, ppn: PhysicalPageNumber, level: int, part: int, direct: int, mode: int
) -> int:
    """An empty shadow page with this key, its guest table traced; -1 if the pool is used up."""
    shadow = vmm.shadow
    index = shadow.free_head
    if index < 0:
        return -1
    page = shadow_page(vmm, index)
    if page.mpn < 0:
        mpn = take_frame(vmm, KIND_SHADOW, index)
        if mpn < 0:
            return -1
        page.mpn = mpn
    else:
        _clear_table(vmm, index)
    shadow.free_head = page.hash_next
    shadow.used += 1
    page.ppn, page.level, page.part, page.direct = ppn, level, part, direct
    page.mode = mode
    page.used = 1
    page.unsynchronized = 0
    page.trace_faults = 0
    store32(shadow.parent_at + index * 4, -1)
    bucket = _bucket(vmm, ppn)
    page.hash_next = load_signed32(bucket)
    store32(bucket, index)
    if direct == 0 and ppn < vmm.mmu.guest_pages:
        write_protect(vmm, ppn)
    return index


@compiled
def unsynchronize(vmm: VmmState, ppn: PhysicalPageNumber) -> None:
    """The guest is about to write to traced page ``ppn``: let it, and trust its shadow no more."""
    shadow = vmm.shadow
    index = load_signed32(_bucket(vmm, ppn))
    while index >= 0:
        page = shadow_page(vmm, index)
        if page.ppn == ppn and page.direct == 0 and page.unsynchronized == 0:
            page.unsynchronized = 1
            page.trace_faults += 1
            store32(shadow.unsynchronized_at + shadow.unsynchronized_count * 4, index)
            shadow.unsynchronized_count += 1
        index = page.hash_next
    flags = load8(vmm.mmu.pmap_flags_at + ppn)
    store8(vmm.mmu.pmap_flags_at + ppn, flags & ~FLAG_TRACED)
    vmm.trace_faults += 1


@compiled
def entry_is_current(vmm: VmmState, index: int, slot: int) -> bool:
    """True if the guest entry behind a slot is still the one the shadow entry was made from."""
    mmu = vmm.mmu
    gpa = guest_entry_gpa(vmm, index, slot)
    address = second_level(mmu, gpa, READ)
    if address == MISS:
        return False
    if shadow_page(vmm, index).mode == MODE_2LEVEL:
        entry = load32(mmu.memory_at + address)
    else:
        entry = load64(mmu.memory_at + address)
    vmm.revalidations += 1
    return entry == load64(vmm.shadow.copy_at + (index * 512 + slot) * 8)


@compiled
def synchronize(vmm: VmmState) -> None:
    """Bring unsynchronized shadow pages up to date and trace their guest tables again.

    Called when the guest has loaded CR3, which flushed the processor's translations. Tables
    the guest keeps writing to stay as they are (TRACE_FAULT_LIMIT).
    """
    shadow = vmm.shadow
    kept = 0
    for position in range(shadow.unsynchronized_count):
        index = load32(shadow.unsynchronized_at + position * 4)
        page = shadow_page(vmm, index)
        ppn = page.ppn
        if (
            page.trace_faults >= TRACE_FAULT_LIMIT
            or second_level(vmm.mmu, guest_physical_address(ppn)) == MISS
        ):
            store32(shadow.unsynchronized_at + kept * 4, index)
            kept += 1
            continue
        for slot in range(512):
            if read_entry(vmm, index, slot) & PRESENT and not entry_is_current(vmm, index, slot):
                drop_entry(vmm, index, slot)
        page.unsynchronized = 0
        vmm.resynchronizations += 1
        write_protect(vmm, ppn)
    shadow.unsynchronized_count = kept
    # A table traced again through one shadow page may be unsynchronized through another: it is
    # traced only if all agree, so that one write fault finds the whole truth.
    shadow.stale = 0


@compiled
def zap_all(vmm: VmmState) -> None:
    """Forget every shadow page. The frames stay in the pool. Obligation: flush (shadow_stale)."""
    shadow = vmm.shadow
    mmu = vmm.mmu
    for index in range(shadow.capacity):
        page = shadow_page(vmm, index)
        page.used = 0
        page.unsynchronized = 0
        page.hash_next = index + 1 if index + 1 < shadow.capacity else -1
    shadow.free_head = 0
    shadow.used = 0
    shadow.unsynchronized_count = 0
    for bucket in range(shadow.hash_mask + 1):
        store32(shadow.hash_at + bucket * 4, -1)
    for ppn in range(mmu.guest_pages):
        store32(vmm.rmap_head_at + ppn * 4, -1)
        flags = load8(mmu.pmap_flags_at + ppn)
        store8(mmu.pmap_flags_at + ppn, flags & ~(FLAG_TRACED | FLAG_SHADOWED | FLAG_WRITE_CACHED))
    shadow.root_index = -1
    shadow.mode = -1
    vmm.shadow_zaps += 1
    shadow.stale = 1
