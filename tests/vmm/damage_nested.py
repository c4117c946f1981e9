# SPDX-License-Identifier: Apache-2.0
"""Damage to nested page tables, the nested cache, and large pages."""

from __future__ import annotations

import numpy as np

from memvirt.machine.memory import FrameKind
from memvirt.mmu.entry import (
    EPT_EXECUTE,
    EPT_LARGE,
    EPT_READ,
    EPT_WRITE,
)
from memvirt.vmm.pmap import PageState

from .corruption import (
    PRIVATE_PPN,
    SHARED_PPN,
    Damage,
    Subject,
)
from .damage import NESTED, Case, count, put

# Nested page tables ----------------------------------------------------------------------------


def edit_nested(level: int, ppn: int, flip: int = 0, value: int | None = None) -> Damage:
    """Damage the nested entry of a level for a page."""

    def damage(s: Subject) -> None:
        table = s.words[s.nested_table(level, ppn)]
        slot = ppn >> (9 * (level - 1)) & 511
        table[slot] = int(table[slot]) ^ flip if value is None else value

    return damage


def edit_cached(flip_entry: int = 0, tag: int | None = None) -> Damage:
    def damage(s: Subject) -> None:
        record = s.cached(PRIVATE_PPN)
        record["entry"] ^= flip_entry
        if tag is not None:
            record["tag"] = tag

    return damage


def outlived(s: Subject) -> None:
    """An entry of level 2 is cleared, and the nested cache not told."""
    edit_nested(2, PRIVATE_PPN, value=0)(s)


def nested_table_twice(s: Subject) -> None:
    table = s.words[s.nested_table(2)]
    table[1] = table[0]


def nested_table_of_level(level: int, tag: int) -> Damage:
    def damage(s: Subject) -> None:
        s.machine.table_level[s.nested_table(level)] = tag

    return damage


ENTRY = f"nested entry of PPN {PRIVATE_PPN:#x}"
CACHED = "nested cache slot 0x0 (PPN 0x0)"
NESTED_CASES = {
    "entry to another frame": Case(
        NESTED, edit_nested(1, PRIVATE_PPN, 3 << 12), "I1", ENTRY, "MPN", f"(PPN {PRIVATE_PPN:#x})"
    ),
    "entry of a page without a frame": Case(
        NESTED,
        put("state", PRIVATE_PPN, PageState.COMPRESSED),
        "I1",
        ENTRY,
        f"a mapping of PPN {PRIVATE_PPN:#x}",
        "none: it is COMPRESSED",
    ),
    "writable entry of a shared page": Case(
        NESTED,
        edit_nested(1, SHARED_PPN, EPT_WRITE),
        "I2",
        f"nested entry of PPN {SHARED_PPN:#x}",
        f"writable PPN {SHARED_PPN:#x}",
        "read-only: it is SHARED",
    ),
    "entry beyond the guest's memory": Case(
        NESTED,
        edit_nested(1, 100, value=0x5037),
        "I1",
        "nested entry of PPN 0x64",
        "a mapping of PPN 0x64",
        "none: it is beyond",
    ),
    "misconfigured entry": Case(
        NESTED,
        edit_nested(1, PRIVATE_PPN, EPT_READ),
        "I1",
        ENTRY,
        "0x",
        "readable, and no bits but",
    ),
    "memory type": Case(
        NESTED, edit_nested(1, PRIVATE_PPN, 1 << 3), "I1", ENTRY, "0x", "no bits but"
    ),
    "reserved bit above the leaf": Case(
        NESTED, edit_nested(3, 0, 1 << 3), "I1", "nested entry of PPN 0x0", "0x", "no bits but"
    ),
    "table beyond the machine": Case(
        NESTED,
        edit_nested(2, 0, 1 << 35),
        "I4",
        "nested table of level 1",
        "beyond",
        "a NESTED frame of VM 0, of level 1",
    ),
    "table that is a guest's page": Case(
        NESTED,
        lambda s: s.machine.kind.__setitem__(s.nested_table(2), FrameKind.GUEST),
        "I4",
        "nested table of level 2",
        "GUEST",
        "a NESTED frame",
    ),
    "table of another level": Case(
        NESTED,
        nested_table_of_level(1, 3),
        "I4",
        "nested table of level 1",
        "detail 0x3",
        "level 1",
    ),
    "table linked twice": Case(
        NESTED, nested_table_twice, "I4", "nested table MPN", "several entries", "one"
    ),
    "tables miscounted": Case(
        NESTED, count("nested_tables"), "I4", "nested tables", "4 linked", "5 counted"
    ),
    "nested cache to another table": Case(
        NESTED,
        edit_cached(flip_entry=5 << 12),
        "I1",
        CACHED,
        "0x",
        "as the nested table has it",
    ),
    "nested cache with more rights": Case(
        NESTED,
        edit_nested(2, PRIVATE_PPN, EPT_WRITE | EPT_EXECUTE),
        "I1",
        CACHED,
        "0x",
        "as the nested table has it",
    ),
    "nested cache that outlived its entry": Case(
        NESTED, outlived, "I1", CACHED, "0x", "no such entry"
    ),
    "nested cache that takes a table for a large page": Case(
        NESTED, edit_cached(flip_entry=EPT_LARGE), "I1", CACHED, "0x", "as the nested table has it"
    ),
    "nested cache entry in a wrong slot": Case(
        NESTED, edit_cached(tag=2), "I1", "nested cache slot 0x0 (PPN 0x200)", "0x", "slot 0x1"
    ),
}


LARGE = {
    "page moved out of the run": (
        lambda s: put("frame", 600, s.frame(601))(s),
        "I4",
        "large page of PPN 0x200",
        "PPN 0x258 PRIVATE at",
        "PRIVATE at MPN",
    ),
    "page not private": (
        put("state", 600, PageState.SHARED),
        "I1",
        "large nested entry of PPN 0x200",
        "PPN 0x258 SHARED",
        "PRIVATE at MPN",
    ),
    "run not aligned": (
        lambda s: s.vmm.pmap.frame.__setitem__(
            slice(512, 1024), s.vmm.pmap.frame[512:1024] + np.uint32(1)
        ),
        "I4",
        "large page of PPN 0x200",
        "MPN",
        "a multiple of 0x200",
    ),
    "entry without a large page": (
        put("large", 1, 0),
        "I1",
        "large nested entry of PPN 0x200",
        "no large page in the pmap",
        "one",
    ),
    "large page beyond memory": (
        put("large", 2, 1),
        "I4",
        "large page of PPN 0x400",
        "76 pages up to the end",
        "512 pages",
    ),
    "large entry to another run": (
        edit_nested(2, 512, flip=1 << 21),
        "I1",
        "large nested entry of PPN 0x200",
        "PPN 0x200 PRIVATE at",
        "PRIVATE at MPN",
    ),
    "large entry to the middle of a run": (
        edit_nested(2, 512, flip=1 << 13),
        "I1",
        "nested entry of PPN 0x200 (level 2",
        "0x",
        "no bits but",
    ),
}
