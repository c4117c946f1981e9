# SPDX-License-Identifier: Apache-2.0
"""Shadow page tables as a structure: the pool, its lists, and every pointer between tables.

What the entries say of the guest's own tables is audited by ``derivation``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import numpy as np

from memvirt.machine.memory import FrameKind
from memvirt.mmu.entry import ENTRY_ADDRESS_MASK, PRESENT, WRITABLE
from memvirt.mmu.page_state import FLAG_SHADOWED, FLAG_TRACED

from .derivation import check_derivation, check_direct
from .links import Links, follow
from .mapping import check_mappings
from .sources import ShadowEntries, ShadowTables, frame_text, in_machine, shadow_tables, words_of
from .violation import Array, Told, Violation

if TYPE_CHECKING:
    from memvirt.vmm.monitor import VirtualMachineMonitor

ENTRIES = 512


def entry_text(link: int) -> str:
    """An entry of a shadow page, by its link, for people."""
    return f"shadow page {link >> 9} slot {link & 511}"


def check_shadow(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """Rules of the shadow page tables of one VM, if it has any."""
    shadow = shadow_tables(vmm)
    if shadow is None:
        return
    sound = np.zeros(shadow.capacity, bool)
    told = Told("I4", f"frames of shadow pages of VM {vmm.vm_id}")
    wrong = _wrong_frames(vmm, shadow)
    for index in told.first(wrong):
        expected = f"a SHADOW frame of VM {vmm.vm_id} that names shadow page {index}"
        found = frame_text(vmm.machine, int(shadow.mpn[index]))
        yield Violation("I4", f"shadow page {index}", found, expected)
    yield from told.rest()
    sound[:] = shadow.used & (shadow.mpn >= 0) & ~wrong
    yield from _check_pool(vmm, shadow)
    yield from _check_owned(vmm, shadow)
    yield from _check_unsynchronized(vmm, shadow)
    yield from _check_root(shadow)
    table, slot = _present(vmm, shadow, sound)
    entry = words_of(vmm.machine)[shadow.mpn[table], slot]
    target = yield from _check_lists(vmm, shadow, table, slot, entry)
    known = ShadowEntries(table, slot, entry, target).select(target >= 0)
    yield from _check_pointers(shadow, known)
    yield from _check_leaves(vmm, shadow, known)
    yield from check_direct(shadow, known)
    yield from check_derivation(vmm, shadow, known)


def _wrong_frames(vmm: VirtualMachineMonitor, shadow: ShadowTables) -> Array:
    """Which shadow pages (used, or keeping a frame for later) name a frame that is not theirs."""
    machine = vmm.machine
    has = shadow.used | (shadow.mpn >= 0)
    exist = in_machine(machine, shadow.mpn)
    wrong = has & ~exist
    indices = np.flatnonzero(has & exist)
    mpns = shadow.mpn[indices]
    wrong[indices] = (
        (machine.kind[mpns] != FrameKind.SHADOW)
        | (machine.owner[mpns] != vmm.vm_id)
        | (machine.shadow_index[mpns] != indices)
    )
    return np.asarray(wrong)


def _check_pool(vmm: VirtualMachineMonitor, shadow: ShadowTables) -> Iterator[Violation]:
    """A shadow page is either on the free list, or in one bucket, under a key of its own."""
    used = np.flatnonzero(shadow.used)
    if used.size != shadow.used_count:
        yield Violation("I1", "shadow pool", f"{used.size} used", f"{shadow.used_count} counted")
    chains = yield from follow(shadow.hash_heads, shadow.hash_next, lambda i: f"hash bucket {i}")
    told = Told("I1", "hash buckets")
    for index in told.first(np.setxor1d(chains.link, used)):
        found = "used" if shadow.used[index] else "not used"
        listed = "in no bucket" if shadow.used[index] else "in a bucket"
        yield Violation("I1", f"shadow page {index}", f"{found}, {listed}", "in one, if used")
    yield from told.rest()
    head = np.array([shadow.free_head], np.int64)
    free = yield from follow(head, shadow.hash_next, lambda i: "free list of shadow pages")
    told = Told("I1", "free list of shadow pages")
    for index in told.first(np.setxor1d(free.link, np.flatnonzero(~shadow.used))):
        found = "used and listed" if shadow.used[index] else "neither used nor listed"
        yield Violation("I1", f"free list: shadow page {index}", found, "free or used")
    yield from told.rest()
    keys = np.stack([column[used] for column in shadow.key_columns()], axis=1)
    _, first, times = np.unique(keys, axis=0, return_index=True, return_counts=True)
    told = Told("I1", "keys of shadow pages")
    for i in told.first(times > 1):
        index = int(used[first[i]])
        key = ", ".join(str(int(column[index])) for column in shadow.key_columns())
        yield Violation("I1", f"shadow page {index}", f"{times[i]} of key ({key})", "1")
    yield from told.rest()


def _check_owned(vmm: VirtualMachineMonitor, shadow: ShadowTables) -> Iterator[Violation]:
    """Every SHADOW frame of the VM is a shadow page's: none is an orphan."""
    machine = vmm.machine
    owned = np.flatnonzero((machine.kind == FrameKind.SHADOW) & (machine.owner == vmm.vm_id))
    told = Told("I4", f"SHADOW frames of VM {vmm.vm_id}")
    for mpn in told.first(np.setdiff1d(owned, shadow.mpn)):
        yield Violation("I4", "shadow pool", frame_text(machine, mpn), "held by a shadow page")
    yield from told.rest()


def _check_unsynchronized(vmm: VirtualMachineMonitor, shadow: ShadowTables) -> Iterator[Violation]:
    """The list of unsynchronized shadow pages is those that say so; tables of others are traced."""
    listed = shadow.listed_unsynchronized
    marked = np.flatnonzero(shadow.used & shadow.unsynchronized)
    if not np.array_equal(np.sort(listed), marked):
        found = ", ".join(str(int(i)) for i in np.sort(listed)[:16])
        expected = ", ".join(str(int(i)) for i in marked[:16])
        yield Violation(
            "I1", "list of unsynchronized shadow pages", found or "none", expected or "none"
        )
    flags = vmm.pmap.flags
    derived = shadow.used & (shadow.direct == 0)
    derived &= (shadow.ppn >= 0) & (shadow.ppn < vmm.pmap.pages)  # CR3 may name no memory
    trusted = np.flatnonzero(derived & ~shadow.unsynchronized)
    told = Told("I1", "guest tables that are not traced")
    for i in told.first(flags[shadow.ppn[trusted]] & FLAG_TRACED == 0):
        where = f"shadow page {trusted[i]}"
        yield Violation("I1", where, f"PPN {shadow.ppn[trusted[i]]:#x} not traced", "traced")
    yield from told.rest()
    for flag, name, pages in (
        (FLAG_TRACED, "traced", shadow.ppn[trusted]),
        (FLAG_SHADOWED, "shadowed", shadow.ppn[derived]),
    ):
        flagged = np.flatnonzero(flags & flag)
        told = Told("I1", f"pages flagged as {name}")
        wrong = np.setdiff1d(flagged, pages)
        if flag == FLAG_SHADOWED:
            wrong = np.setxor1d(flagged, pages)
        for ppn in told.first(wrong):
            has = f"flagged as {name}" if flags[ppn] & flag else f"not flagged as {name}"
            expected = f"flagged if and only if it is a {name} guest table"
            yield Violation("I1", f"PPN {ppn:#x}", has, expected)
        yield from told.rest()


def _check_root(shadow: ShadowTables) -> Iterator[Violation]:
    index = shadow.root_index
    if index == -1:
        return
    if not 0 <= index < shadow.capacity or not shadow.used[index]:
        yield Violation("I1", "shadow root", f"shadow page {index}", "one that is used")
        return
    found = (int(shadow.level[index]), int(shadow.mpn[index]))
    if found != (shadow.root_levels, shadow.root_mpn):
        expected = f"level {shadow.root_levels} at MPN {shadow.root_mpn:#x}"
        text = f"level {found[0]} at MPN {found[1]:#x}"
        yield Violation("I1", f"shadow root {index}", text, expected)


def _present(vmm: VirtualMachineMonitor, shadow: ShadowTables, sound: Array) -> tuple[Array, Array]:
    """Shadow page and slot of every present entry."""
    indices = np.flatnonzero(sound)
    row, slot = np.nonzero(words_of(vmm.machine)[shadow.mpn[indices]] & PRESENT)
    return indices[row], slot


def _check_lists(
    vmm: VirtualMachineMonitor, shadow: ShadowTables, table: Array, slot: Array, entry: Array
) -> Generator[Violation, None, Array]:
    """Every present entry is on the list of what it points to, once; the value is its target.

    The target is the PPN of a leaf, the shadow page of a non-leaf; -1 if no list has the entry.
    """
    pages = yield from follow(
        shadow.rmap_heads, shadow.next, lambda ppn: f"reverse map of PPN {ppn:#x}"
    )
    parents = yield from follow(
        np.where(shadow.used, shadow.parent_heads, -1),
        shadow.next,
        lambda index: f"parents of shadow page {index}",
    )
    links = table * ENTRIES + slot
    target = np.full(shadow.capacity * ENTRIES, -1, np.int64)
    for lists, of_leaves in ((pages, True), (parents, False)):
        yield from _check_previous(shadow, lists)
        is_leaf = shadow.level[lists.link >> 9] == 1
        listed = np.isin(lists.link, links) & (is_leaf == of_leaves)
        told = Told("I1", "lists of entries")
        for i in told.first(~listed):
            what = f"PPN {lists.head[i]:#x}" if of_leaves else f"shadow page {lists.head[i]}"
            where = entry_text(int(lists.link[i]))
            yield Violation("I1", where, "no entry", f"the one listed for {what}")
        yield from told.rest()
        target[lists.link[listed]] = lists.head[listed]
    told = Told("I1", "entries on no list")
    for i in told.first(target[links] < 0):
        where = entry_text(int(links[i]))
        yield Violation("I1", where, f"{_hex(entry[i])} on no list", "listed for its target")
    yield from told.rest()
    return target[links]


def _hex(word: int) -> str:
    return f"{int(word) & (1 << 64) - 1:#x}"


def _check_previous(shadow: ShadowTables, lists: Links) -> Iterator[Violation]:
    expected = np.where(lists.previous < 0, -lists.head - 2, lists.previous)
    actual = shadow.previous[lists.link]
    told = Told("I1", "backward links")
    for i in told.first(actual != expected):
        where = entry_text(int(lists.link[i]))
        yield Violation("I1", where, f"previous {actual[i]}", f"{expected[i]}")
    yield from told.rest()


def _check_pointers(shadow: ShadowTables, entries: ShadowEntries) -> Iterator[Violation]:
    """A non-leaf entry points to the table it is listed for, which is used and one level below."""
    upper = entries.select(shadow.level[entries.table] > 1)
    child = upper.target
    mpns = (upper.entry & ENTRY_ADDRESS_MASK) >> 12
    told = Told("I1", "pointers between shadow pages")
    for i in told.first(mpns != shadow.mpn[child]):
        where = entry_text(upper.link(i))
        expected = f"MPN {shadow.mpn[child[i]]:#x}, shadow page {child[i]}"
        yield Violation("I1", where, f"a table at MPN {mpns[i]:#x}", expected)
    yield from told.rest()
    told = Told("I1", "levels of shadow pages")
    for i in told.first(shadow.level[child] != shadow.level[upper.table] - 1):
        where = entry_text(upper.link(i))
        found = f"shadow page {child[i]} of level {shadow.level[child[i]]}"
        yield Violation("I1", where, found, f"one of level {shadow.level[upper.table[i]] - 1}")
    yield from told.rest()


def _check_leaves(
    vmm: VirtualMachineMonitor, shadow: ShadowTables, entries: ShadowEntries
) -> Iterator[Violation]:
    leaf = entries.select(shadow.level[entries.table] == 1)
    yield from check_mappings(
        vmm,
        leaf.target,
        (leaf.entry & ENTRY_ADDRESS_MASK) >> 12,
        leaf.entry & WRITABLE != 0,
        lambda i: entry_text(leaf.link(i)),
    )
