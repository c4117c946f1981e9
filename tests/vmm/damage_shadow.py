# SPDX-License-Identifier: Apache-2.0
"""Damage to shadow page tables."""

from __future__ import annotations

import numpy as np

from memvirt.mmu.entry import (
    ACCESSED,
    DIRTY,
    NO_EXECUTE,
    PRESENT,
    USER,
    WRITABLE,
)
from memvirt.vmm.pmap import PageState

from .corruption import (
    DATA,
    FLAGS,
    OTHER_PPN,
    PRIVATE_PPN,
    SHARED_PPN,
    UNMAPPED_PPN,
    Damage,
    Subject,
)
from .damage import SHADOW, Case, count, put

# Shadow page tables ----------------------------------------------------------------------------


def edit_leaf(ppn: int, clear: int = 0, flip: int = 0) -> Damage:
    """Damage the shadow entry that maps a page."""

    def damage(s: Subject) -> None:
        index, slot = s.leaf(ppn)
        s.shadow_table(index)[slot] = (int(s.shadow_table(index)[slot]) & ~clear) ^ flip

    return damage


def edit_upper(level: int, frame_of: int | None = None, flip: int = 0) -> Damage:
    """Damage the first entry of the shadow page of a level above the leaves."""

    def damage(s: Subject) -> None:
        table = s.shadow_table(s.shadow_page(level))
        slot = int(np.flatnonzero(table & PRESENT)[0])
        entry = int(table[slot]) ^ flip
        if frame_of is not None:
            entry = (entry & ~0x000F_FFFF_FFFF_F000) | s.frame(frame_of) << 12
        table[slot] = entry

    return damage


def shadow_field(level: int, field: str, value: int) -> Damage:
    def damage(s: Subject) -> None:
        s.shadow_pages[field][s.shadow_page(level)] = value

    return damage


def extra_leaf(s: Subject) -> None:
    index, slot = s.leaf(PRIVATE_PPN)
    s.shadow_table(index)[500] = int(s.shadow_table(index)[slot])


def backward_link(s: Subject) -> None:
    index, slot = s.leaf(PRIVATE_PPN)
    s.pool.rmap_previous[index * 512 + slot] = 1234


def circular_list(s: Subject) -> None:
    index, slot = s.leaf(PRIVATE_PPN)
    s.pool.rmap_next[index * 512 + slot] = index * 512 + slot


def list_beyond_the_array(s: Subject) -> None:
    s.pool.rmap_head[UNMAPPED_PPN] = 0x7FFF_FFFF


def parent_list_lost(s: Subject) -> None:
    s.pool._parent[s.shadow_page(1)] = -1


def hash_lost(s: Subject) -> None:
    s.pool._hash[:] = -1


def free_list_lost(s: Subject) -> None:
    s.set_counter("free_head", -1)


def key_twice(s: Subject) -> None:
    pages, first, second = s.shadow_pages, s.shadow_page(2), s.shadow_page(3)
    for field in ("ppn", "level", "part", "direct"):
        pages[field][second] = pages[field][first]


def unsynchronized_not_listed(s: Subject) -> None:
    s.shadow_pages["unsynchronized"][s.shadow_page(2)] = 1


def not_traced(s: Subject) -> None:
    ppn = int(s.shadow_pages["ppn"][s.shadow_page(2)])
    s.vmm.pmap.flags[ppn] &= 0xFF ^ FLAGS["TRACED"]


def root_of_another_frame(s: Subject) -> None:
    s.set_counter("shadow_root", s.frame(PRIVATE_PPN))


def guest_entry(page: int, clear: int = 0, flip: int = 0) -> Damage:
    """Change the guest's own entry behind the back of its trace."""

    def damage(s: Subject) -> None:
        table = s.words[s.frame(3)]  # the driver's first page table
        table[page] = (int(table[page]) & ~clear) ^ flip

    return damage


LEAF = "slot 0"
SHADOW_CASES = {
    "entry to another frame": Case(
        SHADOW, edit_leaf(PRIVATE_PPN, flip=5 << 12), "I1", LEAF, "MPN", f"(PPN {PRIVATE_PPN:#x})"
    ),
    "entry of a page without a frame": Case(
        SHADOW,
        put("state", PRIVATE_PPN, PageState.SWAPPED),
        "I1",
        LEAF,
        f"a mapping of PPN {PRIVATE_PPN:#x}",
        "none: it is SWAPPED",
    ),
    "writable entry of a shared page": Case(
        SHADOW,
        edit_leaf(SHARED_PPN, flip=WRITABLE),
        "I2",
        "slot 4",
        f"writable PPN {SHARED_PPN:#x}",
        "read-only: it is SHARED",
    ),
    "writable entry of a traced page": Case(
        SHADOW,
        put("flags", PRIVATE_PPN, FLAGS["TRACED"]),
        "I1",
        LEAF,
        f"writable PPN {PRIVATE_PPN:#x}",
        "read-only: it is traced",
    ),
    "traced without a shadow page": Case(
        SHADOW,
        put("flags", OTHER_PPN, FLAGS["TRACED"] | FLAGS["SHADOWED"]),
        "I1",
        f"PPN {OTHER_PPN:#x}",
        "flagged as traced",
        "if and only if it is a traced guest table",
    ),
    "shadowed without a shadow page": Case(
        SHADOW,
        put("flags", OTHER_PPN, FLAGS["SHADOWED"]),
        "I1",
        f"PPN {OTHER_PPN:#x}",
        "flagged as shadowed",
        "if and only if it is a shadowed guest table",
    ),
    "entry that is on no list": Case(
        SHADOW, extra_leaf, "I1", "slot 500", "on no list", "listed for its target"
    ),
    "list of an entry that is not": Case(
        SHADOW,
        edit_leaf(PRIVATE_PPN, clear=PRESENT),
        "I1",
        LEAF,
        "no entry",
        f"the one listed for PPN {PRIVATE_PPN:#x}",
    ),
    "backward link": Case(SHADOW, backward_link, "I1", LEAF, "previous 1234", "-18"),
    "list that runs in a circle": Case(
        SHADOW,
        circular_list,
        "I1",
        f"reverse map of PPN {PRIVATE_PPN:#x}",
        "listed before",
        "each element once",
    ),
    "list beyond its array": Case(
        SHADOW,
        list_beyond_the_array,
        "I1",
        f"reverse map of PPN {UNMAPPED_PPN:#x}",
        "element 2147483647",
        "an element below",
    ),
    "lost list of parents": Case(
        SHADOW, parent_list_lost, "I1", "slot", "on no list", "listed for its target"
    ),
    "root entry to a guest's own page": Case(
        SHADOW, edit_upper(4, frame_of=OTHER_PPN), "I1", "slot 0", "a table at MPN", "shadow page"
    ),
    "pointer to a page of another VM": Case(
        SHADOW, edit_upper(3, flip=9 << 12), "I1", "slot 0", "a table at MPN", "shadow page"
    ),
    "pointer one level too deep": Case(
        SHADOW, shadow_field(2, "level", 1), "I1", "slot", "of level 1", "one of level 2"
    ),
    "shadow page in another frame": Case(
        SHADOW, shadow_field(1, "mpn", 5), "I4", "shadow page", "MPN 0x5", "a SHADOW frame"
    ),
    "shadow page beyond the machine": Case(
        SHADOW, shadow_field(1, "mpn", 1 << 40), "I4", "shadow page", "beyond", "a SHADOW frame"
    ),
    "shadow pages miscounted": Case(SHADOW, count("used"), "I1", "shadow pool", "used", "counted"),
    "hash lost": Case(SHADOW, hash_lost, "I1", "shadow page", "in no bucket", "in one, if used"),
    "free list lost": Case(
        SHADOW, free_list_lost, "I1", "free list", "neither used nor listed", "free or used"
    ),
    "key twice": Case(SHADOW, key_twice, "I1", "shadow page", "2 of key", "1"),
    "unsynchronized, not listed": Case(
        SHADOW, unsynchronized_not_listed, "I1", "list of unsynchronized", "none", ""
    ),
    "guest table not traced": Case(SHADOW, not_traced, "I1", "shadow page", "not traced", "traced"),
    "root in another frame": Case(
        SHADOW, root_of_another_frame, "I1", "shadow root", "level 4 at MPN", "level 4 at MPN"
    ),
    "root that is not used": Case(
        SHADOW,
        lambda s: s.set_counter("root_index", 99),
        "I1",
        "shadow root",
        "shadow page 99",
        "one that is used",
    ),
    "entry without a guest entry": Case(
        SHADOW, guest_entry(0, clear=PRESENT), "I1", "(level 1) slot 0", f"PPN {DATA:#x}", "none"
    ),
    "more rights than the guest's": Case(
        SHADOW, guest_entry(0, clear=WRITABLE), "I1", "(level 1) slot 0", "0x", "no more rights"
    ),
    "execute where the guest forbids": Case(
        SHADOW, guest_entry(1, flip=NO_EXECUTE), "I1", "(level 1) slot 1", "0x", "no more rights"
    ),
    "user where the guest forbids": Case(
        SHADOW, guest_entry(1, clear=USER), "I1", "(level 1) slot 1", "0x", "no more rights"
    ),
    "writable, the guest's entry clean": Case(
        SHADOW, guest_entry(0, clear=DIRTY), "I1", "(level 1) slot 0", "0x", "read-only"
    ),
    "filled, the guest's entry not accessed": Case(
        SHADOW, guest_entry(1, clear=ACCESSED | DIRTY), "I1", "slot 1", "0x", "before the access"
    ),
    "another page than the guest's": Case(
        SHADOW,
        guest_entry(1, flip=1 << 12),
        "I1",
        "(level 1) slot 1",
        f"PPN {OTHER_PPN:#x}",
        "what is mapped by guest entry",
    ),
    "upper entry with more rights": Case(
        SHADOW,
        lambda s: s.words[s.frame(2)].__setitem__(0, int(s.words[s.frame(2)][0]) & ~WRITABLE),
        "I1",
        "(level 2) slot 0",
        "shadow page",
        "no more rights",
    ),
    "upper entry to another table": Case(
        SHADOW,
        lambda s: s.words[s.frame(2)].__setitem__(0, int(s.words[s.frame(2)][0]) ^ 7 << 12),
        "I1",
        "(level 2) slot 0",
        "shadow page",
        "what is mapped by",
    ),
}
