# SPDX-License-Identifier: Apache-2.0
"""What shadow entries say of the guest's own tables (I1).

Only tables that are traced are compared: an entry of an unsynchronized table may be out of date,
and is compared with the guest's before each use. A guest may load CR3 with anything: where no guest
memory lies its tables read as ones (the open bus), from which no entry is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from memvirt.address import PhysicalPageNumber
from memvirt.mmu.entry import (
    ACCESSED,
    DIRTY,
    ENTRY_ADDRESS_MASK,
    LARGE,
    MODE_2LEVEL,
    MODE_OFF,
    MODE_PAE,
    NO_EXECUTE,
    PRESENT,
    USER,
    WRITABLE,
)
from memvirt.vmm.pmap import PageState
from memvirt.vmm.stores.backing import BackingStoreError, PageCorrupted

from .sources import ShadowEntries, ShadowTables, words_of
from .violation import Array, Told, Violation

if TYPE_CHECKING:
    from memvirt.vmm.monitor import VirtualMachineMonitor

_OPEN_BUS = -1


def _where(shadow: ShadowTables, index: int, slot: int) -> str:
    return f"shadow page {index} (level {shadow.level[index]}) slot {slot}"


def _hex(word: int) -> str:
    return f"{int(word) & (1 << 64) - 1:#x}"


def check_direct(shadow: ShadowTables, entries: ShadowEntries) -> Iterator[Violation]:
    """Below a guest large page, or with paging off, entries map guest-physical memory in order."""
    table, slot, target = entries.table, entries.slot, entries.target
    level = shadow.level[table]
    ordered = (shadow.direct[table] != 0) & (
        (shadow.mode[table] == MODE_OFF) | (level <= shadow.mode[table])
    )
    rows = np.flatnonzero(ordered)
    expected = shadow.ppn[table[rows]] + (slot[rows].astype(np.int64) << (9 * (level[rows] - 1)))
    child = np.where(level[rows] > 1, target[rows], 0)
    found = np.where(level[rows] > 1, shadow.ppn[child], target[rows])
    told = Told("I1", "direct shadow pages")
    for i in told.first(found != expected):
        where = _where(shadow, int(table[rows[i]]), int(slot[rows[i]]))
        yield Violation("I1", where, f"PPN {found[i]:#x}", f"PPN {expected[i]:#x}")
    yield from told.rest()


def _guest_words(vmm: VirtualMachineMonitor, ppn: int) -> Array | None:
    """The content of a guest table; None if it is where it cannot be read now."""
    if not 0 <= ppn < vmm.pmap.pages:
        return np.full(512, _OPEN_BUS, np.int64)
    state, frame = int(vmm.pmap.state[ppn]), int(vmm.pmap.frame[ppn])
    if state in (PageState.PRIVATE, PageState.SHARED):
        return words_of(vmm.machine)[frame] if frame < vmm.machine.frames else None
    if state not in tuple(PageState):
        return None
    try:
        return np.frombuffer(vmm.read_page(PhysicalPageNumber(ppn)), np.int64)
    except (BackingStoreError, PageCorrupted, KeyError, IndexError, AssertionError):
        return None  # the disk fails just now, or the slot does not exist: `stores` says which


def _guest_entries(shadow: ShadowTables, index: int, words: Array, slots: Array) -> Array:
    """The guest entries behind slots of a shadow page, from its guest table's content."""
    mode, level, part = (int(each[index]) for each in (shadow.mode, shadow.level, shadow.part))
    if mode == MODE_2LEVEL:
        narrow = words.view(np.uint32)
        numbers = part * 256 + (slots >> 1) if level == 2 else part * 512 + slots
        return narrow[numbers & 1023].astype(np.int64)
    if mode == MODE_PAE and level == 3:
        return words[(part * 4 + (slots & 3)) & 511]
    return words[slots]


def check_derivation(
    vmm: VirtualMachineMonitor, shadow: ShadowTables, entries: ShadowEntries
) -> Iterator[Violation]:
    """Entries of traced tables agree with the guest entries they were made from."""
    compared = shadow.used & (shadow.direct == 0) & ~shadow.unsynchronized
    entries = entries.select(compared[entries.table])
    guest = np.zeros(entries.table.size, np.int64)
    readable = np.ones(guest.size, bool)
    # Present entries come in the order of their tables: one run of rows for each.
    indices, starts = np.unique(entries.table, return_index=True)
    ends = np.append(starts[1:], guest.size)[: starts.size].tolist()
    for index, start, end in zip(indices.tolist(), starts.tolist(), ends, strict=True):
        words = _guest_words(vmm, int(shadow.ppn[index]))
        if words is None:
            readable[start:end] = False
        else:
            guest[start:end] = _guest_entries(shadow, index, words, entries.slot[start:end])
    yield from _compare(vmm, shadow, entries.select(readable), guest[readable])


def _compare(
    vmm: VirtualMachineMonitor,
    shadow: ShadowTables,
    entries: ShadowEntries,
    guest: Array,
) -> Iterator[Violation]:
    """The rules, entry by entry: presence, rights, accessed and dirty, and where both lead."""
    table, slot, entry, target = entries.table, entries.slot, entries.entry, entries.target
    mode, level = shadow.mode[table], shadow.level[table]
    pointer = (mode == MODE_PAE) & (level == 3)  # a PAE PDPTE has no rights and no accessed bit
    rights = np.where(pointer, USER | WRITABLE, guest & (USER | WRITABLE | NO_EXECUTE))
    has_memory = (shadow.ppn[table] >= 0) & (shadow.ppn[table] < vmm.pmap.pages)
    absent = (guest & PRESENT == 0) | ~has_memory
    more = (entry & (USER | WRITABLE) & ~rights != 0) | (rights & NO_EXECUTE & ~entry != 0)
    pse = (mode != MODE_2LEVEL) | shadow.has_page_size_extension
    leaf = (level == 1) | ((guest & LARGE != 0) & (level <= 3) & ~pointer & pse)
    clean = leaf & (entry & WRITABLE != 0) & (guest & DIRTY == 0)
    idle = ~pointer & (guest & ACCESSED == 0)
    rules = (
        ("entries without a guest entry", absent, "none"),
        ("rights", ~absent & more, "no more rights than"),
        ("writable entries of clean pages", ~absent & clean, "read-only for the clean"),
        ("entries of guest entries not accessed", ~absent & idle, "none before the access to"),
        ("where entries lead", ~absent & _leads_elsewhere(shadow, entries, guest, leaf),
         "what is mapped by"),
    )  # fmt: skip
    for name, wrong, relation in rules:
        told = Told("I1", name)
        for i in told.first(wrong):
            where = _where(shadow, int(table[i]), int(slot[i]))
            found = f"{_hex(entry[i])} for {_target_text(level[i], target[i])}"
            yield Violation("I1", where, found, f"{relation} guest entry {_hex(guest[i])}")
        yield from told.rest()


def _target_text(level: int, target: int) -> str:
    return f"PPN {target:#x}" if level == 1 else f"shadow page {target}"


def _leads_elsewhere(
    shadow: ShadowTables, entries: ShadowEntries, guest: Array, leaf: Array
) -> Array:
    """Which entries lead to another page, or another table, than the guest entry names."""
    table, slot, target = entries.table, entries.slot, entries.target
    mode, level = shadow.mode[table], shadow.level[table]
    named = (guest & np.where(mode == MODE_2LEVEL, 0xFFFF_F000, ENTRY_ADDRESS_MASK)) >> 12
    child = np.where(level > 1, target, 0)
    actual = np.where(level == 1, target, shadow.ppn[child])
    # Below a large page lies a direct table that begins at this entry's part of it.
    inside = (1 << (9 * (level - 1))) - 1
    large = leaf & (level > 1)
    wide = named & ~inside
    # A 4 MiB page is two slots, with address bits 39:32 in bits 20:13 of its entry.
    base = ((guest & 0xFFC0_0000) | (((guest >> 13) & 0xFF) << 32)) >> 12
    narrow = base + ((slot & 1) << 9)
    expected = np.where(large, np.where(mode == MODE_2LEVEL, narrow, wide), named)
    return np.asarray((actual != expected) | ((level > 1) & ((shadow.direct[child] != 0) != large)))
