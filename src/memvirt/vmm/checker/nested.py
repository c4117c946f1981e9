# SPDX-License-Identifier: Apache-2.0
"""The nested table of one VM, level by level, and the nested cache in front of it (I1, I2, I4)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memvirt.machine.memory import FrameKind
from memvirt.mmu.entry import (
    ENTRY_ADDRESS_MASK,
    EPT_LARGE,
    EPT_READ,
    EPT_RIGHTS,
    EPT_WRITE,
    EPT_WRITE_BACK,
)
from memvirt.vmm.pmap import LARGE_PAGES, PageState

from .mapping import check_mappings
from .pages import state_name
from .sources import NestedTables, frame_text, in_machine, nested_tables, words_of
from .violation import Array, Told, Violation

if TYPE_CHECKING:
    from memvirt.vmm.monitor import VirtualMachineMonitor

_LEVELS = 4
_TABLE_LOW_BITS = EPT_RIGHTS  # what the VMM sets in an entry that points to a table


@dataclass(frozen=True, slots=True)
class _Level:
    """The present entries of all tables of one level."""

    level: int
    table: Array  # MPN of the table each entry lies in
    slot: Array
    ppn: Array  # first PPN that each entry maps
    entry: Array
    rights: Array  # combined with those of the levels above

    @property
    def target(self) -> Array:
        return np.asarray((self.entry & ENTRY_ADDRESS_MASK) >> 12)

    def where(self, i: int) -> str:
        return (
            f"nested entry of PPN {self.ppn[i]:#x} "
            f"(level {self.level}, MPN {self.table[i]:#x} slot {self.slot[i]})"
        )


def check_nested(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """Rules of the nested table, if there is one, and of the translations cached from it."""
    nested = nested_tables(vmm)
    if nested is None:
        return
    tables = np.array([nested.root], np.int64)
    bases, rights = np.zeros(1, np.int64), np.full(1, EPT_RIGHTS, np.int64)
    every_table = [tables]
    for level in range(_LEVELS, 0, -1):
        sound = yield from _check_tables(vmm, level, tables)
        found = _entries(vmm, level, tables[sound], bases[sound], rights[sound])
        yield from _check_format(found, nested)
        large = (found.entry & EPT_LARGE != 0) & (level == 2)
        if level == 1:
            yield from check_mappings(
                vmm, found.ppn, found.target, found.entry & EPT_WRITE != 0, found.where
            )
            break
        yield from _check_large_entries(vmm, found, large)
        if level == 2:
            yield from _check_nested_cache(vmm, nested, found)
        tables, bases, rights = found.target[~large], found.ppn[~large], found.rights[~large]
        again = np.unique(tables, return_counts=True)
        for mpn in again[0][again[1] > 1].tolist():
            yield Violation("I4", f"nested table MPN {mpn:#x}", "several entries", "one")
        every_table.append(tables)
    yield from _check_owned(vmm, nested, np.unique(np.concatenate(every_table)))


def _check_tables(
    vmm: VirtualMachineMonitor, level: int, tables: Array
) -> Generator[Violation, None, Array]:
    """Rules of the frames of one level; the value is which of them may be read on."""
    machine = vmm.machine
    exist = in_machine(machine, tables)
    wrong = ~exist
    mpns = tables[exist]
    wrong[exist] = (
        (machine.kind[mpns] != FrameKind.NESTED)
        | (machine.owner[mpns] != vmm.vm_id)
        | (machine.table_level[mpns] != level)
    )
    told = Told("I4", f"nested tables of level {level}")
    for i in told.first(wrong):
        expected = f"a NESTED frame of VM {vmm.vm_id}, of level {level}"
        found = frame_text(machine, int(tables[i]))
        yield Violation("I4", f"nested table of level {level}", found, expected)
    yield from told.rest()
    return ~wrong


def _entries(
    vmm: VirtualMachineMonitor, level: int, tables: Array, bases: Array, rights: Array
) -> _Level:
    words = words_of(vmm.machine)[tables]
    row, slot = np.nonzero(words & EPT_RIGHTS)
    entry = words[row, slot]
    return _Level(
        level=level,
        table=tables[row],
        slot=slot,
        ppn=bases[row] + (slot << (9 * (level - 1))),
        entry=entry,
        rights=rights[row] & entry,
    )


def _check_format(found: _Level, nested: NestedTables) -> Iterator[Violation]:
    """Entries are as the VMM makes them, hence never what the processor calls misconfigured."""
    level, entry = found.level, found.entry
    leaf = np.full(entry.size, level == 1) | ((entry & EPT_LARGE != 0) & (level == 2))
    low = np.where(leaf, EPT_RIGHTS | EPT_WRITE_BACK, _TABLE_LOW_BITS)
    low = np.where(leaf & (level == 2), low | EPT_LARGE, low)
    frame_bits = ((1 << nested.physical_address_bits) - 1) & ENTRY_ADDRESS_MASK
    frame_bits &= ~0xFFF
    allowed = low | frame_bits
    allowed = np.where(leaf & (level == 2), allowed & ~((LARGE_PAGES - 1) << 12), allowed)
    wrong = (entry & ~allowed != 0) | (entry & EPT_READ == 0)
    wrong |= leaf & (entry & (7 << 3) != EPT_WRITE_BACK)
    told = Told("I1", f"format of nested entries of level {level}")
    for i in told.first(wrong):
        expected = f"readable, and no bits but {int(allowed[i]) & (1 << 64) - 1:#x}"
        yield Violation("I1", found.where(i), f"{int(entry[i]) & (1 << 64) - 1:#x}", expected)
    yield from told.rest()


def _check_large_entries(
    vmm: VirtualMachineMonitor, found: _Level, large: Array
) -> Iterator[Violation]:
    """A large entry maps 512 private pages that lie in order in one run of frames."""
    pmap = vmm.pmap
    for i in np.flatnonzero(large).tolist():
        first_ppn, first_mpn = int(found.ppn[i]), int(found.target[i])
        where = f"large {found.where(i)}"
        if first_ppn + LARGE_PAGES > pmap.pages:
            yield Violation("I1", where, "a mapping", f"none: {state_name(vmm, first_ppn + 511)}")
            continue
        if not pmap.large[first_ppn // LARGE_PAGES]:
            yield Violation("I1", where, "no large page in the pmap", "one")
        pages = slice(first_ppn, first_ppn + LARGE_PAGES)
        frames = pmap.frame[pages].astype(np.int64)
        wrong = (pmap.state[pages] != PageState.PRIVATE) | (
            frames != first_mpn + np.arange(LARGE_PAGES)
        )
        told = Told("I1", where)
        for k in told.first(wrong):
            ppn = first_ppn + k
            actual = f"PPN {ppn:#x} {state_name(vmm, ppn)} at {frames[k]:#x}"
            yield Violation("I1", where, actual, f"PRIVATE at MPN {first_mpn + k:#x}")
        yield from told.rest()


def _check_owned(
    vmm: VirtualMachineMonitor, nested: NestedTables, linked: Array
) -> Iterator[Violation]:
    """Every frame of the VM that is a nested table is linked: none is an orphan."""
    machine = vmm.machine
    owned = np.flatnonzero((machine.kind == FrameKind.NESTED) & (machine.owner == vmm.vm_id))
    told = Told("I4", f"nested tables of VM {vmm.vm_id}")
    for mpn in told.first(np.setdiff1d(owned, linked)):
        yield Violation("I4", "nested tables", frame_text(machine, mpn), "linked to the root")
    yield from told.rest()
    if linked.size != nested.count:
        yield Violation("I4", "nested tables", f"{linked.size} linked", f"{nested.count} counted")


def _check_nested_cache(
    vmm: VirtualMachineMonitor, nested: NestedTables, found: _Level
) -> Iterator[Violation]:
    """What the nested cache holds, level 2 of the table says too: none outlives its entry."""
    slots = np.flatnonzero(nested.cache_tag)
    regions, cached = nested.cache_tag[slots] - 1, nested.cache_entry[slots]
    order = np.argsort(found.ppn, kind="stable")
    keys = found.ppn[order] // LARGE_PAGES
    at = np.searchsorted(keys, regions)
    known = at < keys.size
    known[known] = keys[at[known]] == regions[known]
    actual = np.zeros(slots.size, np.int64)
    chosen = order[at[known]]
    kept = found.entry[chosen] & (ENTRY_ADDRESS_MASK | EPT_LARGE)
    actual[known] = kept | (found.rights[chosen] & EPT_RIGHTS)
    same_target = (cached ^ actual) & (ENTRY_ADDRESS_MASK | EPT_LARGE) == 0
    more = cached & EPT_RIGHTS & ~actual != 0
    misplaced = (regions & (nested.cache_tag.size - 1)) != slots
    told = Told("I1", "nested cache")
    for i in told.first(misplaced | ~known | ~same_target | more):
        where = f"nested cache slot {slots[i]:#x} (PPN {int(regions[i]) * LARGE_PAGES:#x})"
        expected = f"{actual[i]:#x} as the nested table has it" if known[i] else "no such entry"
        if misplaced[i]:
            expected = f"slot {int(regions[i]) & (nested.cache_tag.size - 1):#x}"
        yield Violation("I1", where, f"{cached[i]:#x}", expected)
    yield from told.rest()
