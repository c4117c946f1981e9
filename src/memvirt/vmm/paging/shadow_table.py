# SPDX-License-Identifier: Apache-2.0
"""Shadow page tables as a structure: the cache of shadow pages and the reverse map.

A *shadow page* is one 512-entry table, in a frame of machine memory, derived from one guest table
(or part of one: 32-bit guest tables have 1024 entries) or, below a guest large page, from nothing
but the PPN range (a *direct* page). Shadow pages are found by (PPN, level, part, direct), so roots
and shared subtrees are cached across guest context switches.

Every present entry is on one doubly linked list: a leaf on that of its PPN, a non-leaf on that of
the shadow page it points to. Links are indexed by entry (shadow page * 512 + slot), so unlinking
costs no search. A negative ``previous`` link is ``-(list head) - 2``.

Each shadow page keeps, beside every entry, the guest entry it was derived from. While its guest
table is traced (write-protected) the two agree; after the guest writes to it the shadow page is
*unsynchronized*: each use of one of its entries compares the copy with the guest's entry first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from memvirt.mmu.control import (
    FLAG_SHADOWED,
    FLAG_TRACED,
    FLAG_WRITE_CACHED,
    READ,
)
from memvirt.mmu.entry import (
    ENTRY_ADDRESS_MASK,
    MODE_2LEVEL,
    MODE_PAE,
    PRESENT,
    WRITABLE,
)
from memvirt.mmu.native import load8, load32, load64, store8, store32, store64
from memvirt.mmu.second_level import MISS, second_level
from memvirt.vmm.frames import KIND_SHADOW, take_frame

SHADOW_PAGE_DTYPE = np.dtype(
    [
        ("mpn", "i8"),  # its frame, -1 if it never had one
        ("ppn", "i8"),  # the guest table, or the first PPN of a direct page
        ("level", "i8"),
        ("part", "i8"),  # which part of the guest table
        ("direct", "i8"),  # derived from no guest table
        ("mode", "i8"),  # paging mode of the guest table
        ("used", "i8"),
        ("unsynchronized", "i8"),
        ("trace_faults", "i8"),  # times the guest wrote to it while traced
        ("hash_next", "i8"),  # next in its bucket, or next free
    ]
)
RECORD_BYTES = SHADOW_PAGE_DTYPE.itemsize
_MPN, _PPN, _LEVEL, _PART, _DIRECT, _MODE, _USED, _UNSYNC, _FAULTS, _NEXT = (
    8 * i for i in range(10)
)

# After so many trace faults a guest table stays unsynchronized: revalidating one entry per TLB
# fill is cheaper than tracing it again at each context switch.
TRACE_FAULT_LIMIT = 8


@njit(nogil=True, cache=True)
def _field(vm: Any, index: int, offset: int) -> int:
    return load64(vm.shadow_pages_at + index * RECORD_BYTES + offset)


@njit(nogil=True, cache=True)
def _set_field(vm: Any, index: int, offset: int, value: int) -> None:
    store64(vm.shadow_pages_at + index * RECORD_BYTES + offset, value)


@njit(nogil=True, cache=True)
def shadow_mpn(vm: Any, index: int) -> int:
    return _field(vm, index, _MPN)


@njit(nogil=True, cache=True)
def is_unsynchronized(vm: Any, index: int) -> bool:
    return _field(vm, index, _UNSYNC) != 0


@njit(nogil=True, cache=True)
def _bucket(vm: Any, ppn: int) -> int:
    return vm.shadow_hash_at + (((ppn * 0x9E3779B1) >> 7) & vm.shadow_hash_mask) * 4


@njit(nogil=True, cache=True)
def _signed32(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


@njit(nogil=True, cache=True)
def find_shadow_page(vm: Any, ppn: int, level: int, part: int, direct: int) -> int:
    """Index of the shadow page with this key, or -1."""
    index = _signed32(load32(_bucket(vm, ppn)))
    while index >= 0:
        if (
            _field(vm, index, _PPN) == ppn
            and _field(vm, index, _LEVEL) == level
            and _field(vm, index, _PART) == part
            and _field(vm, index, _DIRECT) == direct
        ):
            return index
        index = _field(vm, index, _NEXT)
    return -1


@njit(nogil=True, cache=True)
def _entry_at(vm: Any, index: int, slot: int) -> int:
    return vm.memory_at + (_field(vm, index, _MPN) << 12) + slot * 8


@njit(nogil=True, cache=True)
def read_entry(vm: Any, index: int, slot: int) -> int:
    return load64(_entry_at(vm, index, slot))


@njit(nogil=True, cache=True)
def shadow_index(vm: Any, entry: int) -> int:
    """Index of the shadow page that a present non-leaf entry points to."""
    return load64(vm.frame_tag_at + ((entry & ENTRY_ADDRESS_MASK) >> 12) * 8)


@njit(nogil=True, cache=True)
def guest_entry_gpa(vm: Any, index: int, slot: int) -> int:
    """Guest-physical address of the guest entry behind a slot of a non-direct shadow page."""
    base = _field(vm, index, _PPN) << 12
    mode, level, part = (
        _field(vm, index, _MODE),
        _field(vm, index, _LEVEL),
        _field(vm, index, _PART),
    )
    if mode == MODE_2LEVEL:
        if level == 2:
            return base + (part * 256 + (slot >> 1)) * 4
        return base + (part * 512 + slot) * 4
    if mode == MODE_PAE and level == 3:
        return base + part * 32 + (slot & 3) * 8
    return base + slot * 8


@njit(nogil=True, cache=True)
def _head_at(vm: Any, index: int, target: int) -> int:
    """Address of the list head for an entry of shadow page ``index`` that maps ``target``."""
    if _field(vm, index, _LEVEL) == 1:
        return vm.rmap_head_at + target * 4
    return vm.shadow_parent_at + target * 4


@njit(nogil=True, cache=True)
def set_entry(vm: Any, index: int, slot: int, entry: int, copy: int, target: int) -> None:
    """Install a present entry in an empty slot and link it to its target.

    ``target`` is the PPN of a leaf, the shadow page index of a non-leaf; ``copy`` the guest entry
    it was derived from. Needs no flush: the slot was empty.
    """
    store64(_entry_at(vm, index, slot), entry)
    link = index * 512 + slot
    store64(vm.shadow_copy_at + link * 8, copy)
    head = _head_at(vm, index, target)
    first = _signed32(load32(head))
    store32(vm.rmap_next_at + link * 4, first)
    store32(vm.rmap_previous_at + link * 4, -target - 2)
    if first >= 0:
        store32(vm.rmap_previous_at + first * 4, link)
    store32(head, link)


@njit(nogil=True, cache=True)
def drop_entry(vm: Any, index: int, slot: int) -> None:
    """Clear a present entry and unlink it.

    Obligation: a processor translation made through it may live on until it is flushed; the
    caller flushes unless the guest itself owes the flush.
    """
    link = index * 512 + slot
    following = _signed32(load32(vm.rmap_next_at + link * 4))
    previous = _signed32(load32(vm.rmap_previous_at + link * 4))
    if following >= 0:
        store32(vm.rmap_previous_at + following * 4, previous)
    if previous >= 0:
        store32(vm.rmap_next_at + previous * 4, following)
    else:
        store32(_head_at(vm, index, -previous - 2), following)
    store64(_entry_at(vm, index, slot), 0)
    vm.entries_dropped += 1


@njit(nogil=True, cache=True)
def drop_mappings(vm: Any, ppn: int) -> int:
    """Clear every shadow entry that maps ``ppn``; returns how many. The caller flushes."""
    dropped = 0
    link = _signed32(load32(vm.rmap_head_at + ppn * 4))
    while link >= 0:
        following = _signed32(load32(vm.rmap_next_at + link * 4))
        drop_entry(vm, link >> 9, link & 511)
        dropped += 1
        link = following
    return dropped


@njit(nogil=True, cache=True)
def write_protect(vm: Any, ppn: int) -> None:
    """Make every shadow entry that maps ``ppn`` read-only, and note if a flush is due."""
    link = _signed32(load32(vm.rmap_head_at + ppn * 4))
    while link >= 0:
        address = _entry_at(vm, link >> 9, link & 511)
        store64(address, load64(address) & ~WRITABLE)
        link = _signed32(load32(vm.rmap_next_at + link * 4))
    flags = load8(vm.pmap_flags_at + ppn)
    if flags & FLAG_WRITE_CACHED:
        vm.shadow_stale = 1
        flags &= ~FLAG_WRITE_CACHED
    store8(vm.pmap_flags_at + ppn, flags | FLAG_TRACED | FLAG_SHADOWED)


@njit(nogil=True, cache=True)
def _clear_table(vm: Any, index: int) -> None:
    base = _entry_at(vm, index, 0)
    for slot in range(512):
        store64(base + slot * 8, 0)


@njit(nogil=True, cache=True)
def new_shadow_page(vm: Any, ppn: int, level: int, part: int, direct: int, mode: int) -> int:
    """An empty shadow page with this key, its guest table traced; -1 if the pool is used up."""
    index = vm.shadow_free_head
    if index < 0:
        return -1
    if _field(vm, index, _MPN) < 0:
        mpn = take_frame(vm, KIND_SHADOW, index)
        if mpn < 0:
            return -1
        _set_field(vm, index, _MPN, mpn)
    else:
        _clear_table(vm, index)
    vm.shadow_free_head = _field(vm, index, _NEXT)
    vm.shadow_used += 1
    _set_field(vm, index, _PPN, ppn)
    _set_field(vm, index, _LEVEL, level)
    _set_field(vm, index, _PART, part)
    _set_field(vm, index, _DIRECT, direct)
    _set_field(vm, index, _MODE, mode)
    _set_field(vm, index, _USED, 1)
    _set_field(vm, index, _UNSYNC, 0)
    _set_field(vm, index, _FAULTS, 0)
    store32(vm.shadow_parent_at + index * 4, -1)
    bucket = _bucket(vm, ppn)
    _set_field(vm, index, _NEXT, _signed32(load32(bucket)))
    store32(bucket, index)
    if direct == 0 and ppn < vm.guest_pages:
        write_protect(vm, ppn)
    return index


@njit(nogil=True, cache=True)
def unsynchronize(vm: Any, ppn: int) -> None:
    """The guest is about to write to traced page ``ppn``: let it, and trust its shadow no more."""
    index = _signed32(load32(_bucket(vm, ppn)))
    while index >= 0:
        if (
            _field(vm, index, _PPN) == ppn
            and _field(vm, index, _DIRECT) == 0
            and _field(vm, index, _UNSYNC) == 0
        ):
            _set_field(vm, index, _UNSYNC, 1)
            _set_field(vm, index, _FAULTS, _field(vm, index, _FAULTS) + 1)
            store32(vm.unsynchronized_at + vm.unsynchronized_count * 4, index)
            vm.unsynchronized_count += 1
        index = _field(vm, index, _NEXT)
    flags = load8(vm.pmap_flags_at + ppn)
    store8(vm.pmap_flags_at + ppn, flags & ~FLAG_TRACED)
    vm.trace_faults += 1


@njit(nogil=True, cache=True)
def entry_is_current(vm: Any, index: int, slot: int) -> bool:
    """True if the guest entry behind a slot is still the one the shadow entry was made from."""
    gpa = guest_entry_gpa(vm, index, slot)
    address = second_level(vm, gpa, READ)
    if address == MISS:
        return False
    if _field(vm, index, _MODE) == MODE_2LEVEL:
        entry = load32(vm.memory_at + address)
    else:
        entry = load64(vm.memory_at + address)
    vm.walk_references += 1
    vm.revalidations += 1
    return entry == load64(vm.shadow_copy_at + (index * 512 + slot) * 8)


@njit(nogil=True, cache=True)
def synchronize(vm: Any) -> None:
    """Bring unsynchronized shadow pages up to date and trace their guest tables again.

    Called when the guest has loaded CR3, which flushed the processor's translations. Tables
    the guest keeps writing to stay as they are (TRACE_FAULT_LIMIT).
    """
    kept = 0
    for position in range(vm.unsynchronized_count):
        index = load32(vm.unsynchronized_at + position * 4)
        ppn = _field(vm, index, _PPN)
        if _field(vm, index, _FAULTS) >= TRACE_FAULT_LIMIT or second_level(vm, ppn << 12) == MISS:
            store32(vm.unsynchronized_at + kept * 4, index)
            kept += 1
            continue
        for slot in range(512):
            if read_entry(vm, index, slot) & PRESENT and not entry_is_current(vm, index, slot):
                drop_entry(vm, index, slot)
        _set_field(vm, index, _UNSYNC, 0)
        vm.resynchronizations += 1
        write_protect(vm, ppn)
    vm.unsynchronized_count = kept
    # A table traced again through one shadow page may be unsynchronized through another: it is
    # traced only if all agree, so that one write fault finds the whole truth.
    vm.shadow_stale = 0


@njit(nogil=True, cache=True)
def zap_all(vm: Any) -> None:
    """Forget every shadow page. The frames stay in the pool. Obligation: flush (shadow_stale)."""
    for index in range(vm.shadow_capacity):
        _set_field(vm, index, _USED, 0)
        _set_field(vm, index, _UNSYNC, 0)
        _set_field(vm, index, _NEXT, index + 1 if index + 1 < vm.shadow_capacity else -1)
    vm.shadow_free_head = 0
    vm.shadow_used = 0
    vm.unsynchronized_count = 0
    for bucket in range(vm.shadow_hash_mask + 1):
        store32(vm.shadow_hash_at + bucket * 4, -1)
    for ppn in range(vm.guest_pages):
        store32(vm.rmap_head_at + ppn * 4, -1)
        flags = load8(vm.pmap_flags_at + ppn)
        store8(vm.pmap_flags_at + ppn, flags & ~(FLAG_TRACED | FLAG_SHADOWED | FLAG_WRITE_CACHED))
    vm.shadow_root_index = -1
    vm.shadow_mode = -1
    vm.shadow_zaps += 1
    vm.shadow_stale = 1
