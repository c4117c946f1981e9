# SPDX-License-Identifier: Apache-2.0
"""The consistency checker: the invariants of docs/architecture.md, audited and never repaired.

I1  A shadow entry maps a PPN only to the frame the pmap names, and, while its guest table is
    traced, with no more rights than the guest entry it came from. (An entry of an unsynchronized
    table may be out of date: it is compared with the guest's before each use.)
I2  No writable mapping of a shared frame exists.
I3  The reference count of a frame is the number of pages mapped to it, plus VMM uses.
I4  Every frame is free or owned, never both, and a private frame is owned by the VM and names its
    PPN.
I5  (Content) is proved by guests that verify their memory, not here.
I6  A shared frame is mapped by VMs of its own salt only.

Call it at a quiescent point: all processors stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from memvirt.machine.memory import FrameKind, MachineMemory
from memvirt.mmu.entry import (
    DIRTY,
    ENTRY_ADDRESS_MASK,
    EPT_LARGE,
    EPT_RIGHTS,
    EPT_WRITE,
    NO_EXECUTE,
    PRESENT,
    USER,
    WRITABLE,
)
from memvirt.mmu.page_state import FLAG_BALLOONED, FLAG_TRACED

from .backing import BackingStoreError, PageCorrupted
from .monitor import VirtualMachineMonitor
from .paging.nested_paging import NestedPaging
from .paging.shadow_paging import ShadowPaging
from .paging.shadow_table import guest_entry_gpa
from .pmap import LARGE_PAGES, PageState


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken invariant: which, where, and both sides of the mismatch."""

    invariant: str
    where: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.where}: found {self.found}, expected {self.expected}"


def check_vm(vmm: VirtualMachineMonitor) -> list[Violation]:
    """Violations inside one VM."""
    found = list(_check_pmap(vmm))
    if isinstance(vmm.page_tables, ShadowPaging):
        found += _check_shadow(vmm, vmm.page_tables)
    elif isinstance(vmm.page_tables, NestedPaging):
        found += _check_nested(vmm)
    return found


def check_machine(machine: MachineMemory, vmms: Iterable[VirtualMachineMonitor]) -> list[Violation]:
    """Violations in machine memory and in every VM on it. ``vmms`` must be all of them."""
    vmms = list(vmms)
    found: list[Violation] = []
    for vmm in vmms:
        found += check_vm(vmm)
    found += _check_references(machine, vmms)
    found += _check_frames(machine, vmms)
    return found


def _check_pmap(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    pmap, machine = vmm.pmap, vmm.machine
    private = np.flatnonzero(pmap.state == PageState.PRIVATE)
    mpns = pmap.frame[private]
    wrong = (
        (machine.kind[mpns] != FrameKind.GUEST)
        | (machine.owner[mpns] != vmm.vm_id)
        | (machine.guest_ppn[mpns] != private)
        | (machine.references[mpns] != 1)
    )
    for ppn, mpn in zip(private[wrong].tolist(), mpns[wrong].tolist(), strict=True):
        yield Violation("I4", f"PPN {ppn:#x}", _frame(machine, mpn), f"GUEST frame of PPN {ppn:#x}")
    ballooned = np.flatnonzero(pmap.flags & FLAG_BALLOONED)
    for ppn in ballooned[pmap.state[ballooned] != PageState.UNMAPPED].tolist():
        state = PageState(int(pmap.state[ppn])).name
        yield Violation("I4", f"PPN {ppn:#x}", f"ballooned and {state}", "ballooned and UNMAPPED")
    if ballooned.size != vmm.state.ballooned_pages:
        yield Violation(
            "I4", "balloon", f"{ballooned.size} pages", f"{vmm.state.ballooned_pages} counted"
        )
    shared = np.flatnonzero(pmap.state == PageState.SHARED)
    mpns = pmap.frame[shared]
    wrong = (machine.kind[mpns] != FrameKind.SHARED) | (machine.share_salt(mpns) != vmm.share_salt)
    for ppn, mpn in zip(shared[wrong].tolist(), mpns[wrong].tolist(), strict=True):
        expected = f"a SHARED frame of salt {vmm.share_salt}"
        yield Violation("I6", f"PPN {ppn:#x}", _frame(machine, mpn), expected)


def _frame(machine: MachineMemory, mpn: int) -> str:
    kind = FrameKind(int(machine.kind[mpn])).name
    return (
        f"MPN {mpn:#x} {kind} owner {machine.owner[mpn]} detail {machine.guest_ppn[mpn]:#x} "
        f"references {machine.references[mpn]}"
    )


def _check_mapping(
    vmm: VirtualMachineMonitor, where: str, ppn: int, mpn: int, writable: bool
) -> Iterator[Violation]:
    """The rules that hold for a last-level entry in either mode."""
    pmap = vmm.pmap
    state = PageState(int(pmap.state[ppn]))
    if state not in (PageState.PRIVATE, PageState.SHARED):
        yield Violation("I1", where, f"a mapping of PPN {ppn:#x}", f"none: it is {state.name}")
    elif pmap.frame[ppn] != mpn:
        yield Violation("I1", where, f"MPN {mpn:#x}", f"MPN {pmap.frame[ppn]:#x} (PPN {ppn:#x})")
    if writable and state is not PageState.PRIVATE:
        yield Violation("I2", where, f"writable PPN {ppn:#x}", f"read-only: it is {state.name}")
    if writable and pmap.flags[ppn] & FLAG_TRACED:
        yield Violation("I1", where, f"writable PPN {ppn:#x}", "read-only: it is traced")


def _check_shadow(vmm: VirtualMachineMonitor, shadow: ShadowPaging) -> Iterator[Violation]:
    content = vmm.machine.content.view(np.int64).reshape(-1, 512)
    listed = 0
    for ppn in np.flatnonzero(vmm.pmap.rmap_head >= 0).tolist():
        previous, link = -ppn - 2, int(vmm.pmap.rmap_head[ppn])
        while link >= 0:
            listed += 1
            index, slot = link >> 9, link & 511
            where = f"shadow page {index} slot {slot}"
            entry = int(content[shadow.pages["mpn"][index], slot])
            if not entry & PRESENT or not shadow.pages["used"][index]:
                yield Violation("I1", where, "no entry", f"the one listed for PPN {ppn:#x}")
            mpn = (entry & ENTRY_ADDRESS_MASK) >> 12
            yield from _check_mapping(vmm, where, ppn, mpn, bool(entry & WRITABLE))
            if shadow.rmap_previous[link] != previous:
                yield Violation(
                    "I1", where, f"previous {shadow.rmap_previous[link]}", f"{previous}"
                )
            previous, link = link, int(shadow.rmap_next[link])
    present = 0
    for index in np.flatnonzero(shadow.pages["used"]).tolist():
        page = shadow.pages[index]
        table = content[page["mpn"]]
        slots = np.flatnonzero(table & PRESENT)
        if page["level"] == 1:
            present += slots.size
        if vmm.machine.kind[page["mpn"]] != FrameKind.SHADOW:
            yield Violation(
                "I4", f"shadow page {index}", _frame(vmm.machine, int(page["mpn"])), "SHADOW"
            )
        if not page["direct"] and not page["unsynchronized"]:
            yield from _check_derivation(vmm, shadow, index, table, slots)
    if present != listed:
        yield Violation("I1", "reverse map", f"{listed} entries listed", f"{present} present")


def _check_derivation(
    vmm: VirtualMachineMonitor, shadow: ShadowPaging, index: int, table: Any, slots: Any
) -> Iterator[Violation]:
    """Entries of a traced table agree with the guest entries they were made from."""
    page = shadow.pages[index]
    traced = vmm.pmap.flags[page["ppn"]] & FLAG_TRACED
    if not traced:
        yield Violation("I1", f"shadow page {index}", f"PPN {page['ppn']:#x} not traced", "traced")
    wide = page["mode"] != 2
    for slot in slots.tolist():
        gpa = int(guest_entry_gpa(vmm.state, index, slot))
        try:
            raw = vmm.read_physical(gpa, 8 if wide else 4)
        except (BackingStoreError, PageCorrupted):
            return  # the table is where it cannot be read now: nothing can be said of it
        guest = int.from_bytes(raw, "little", signed=wide)
        entry = int(table[slot])
        allowed = guest & (USER | WRITABLE | NO_EXECUTE)
        if page["mode"] == 3 and page["level"] == 3:
            allowed = USER | WRITABLE  # a PAE PDPTE carries no rights
        where = f"shadow page {index} (level {page['level']}) slot {slot}"
        if not guest & PRESENT:
            yield Violation("I1", where, "an entry", f"none: guest entry {guest:#x}")
        elif entry & (USER | WRITABLE) & ~allowed or allowed & NO_EXECUTE & ~entry:
            yield Violation("I1", where, f"{entry:#x}", f"no more rights than {guest:#x}")
        elif page["level"] == 1 and entry & WRITABLE and not guest & DIRTY:
            yield Violation("I1", where, f"writable {entry:#x}", f"read-only: clean {guest:#x}")


def _check_nested(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    content = vmm.machine.content.view(np.int64).reshape(-1, 512)
    tables = [(int(vmm.state.mmu.nested_root), 4, 0)]
    seen = 0
    while tables:
        mpn, level, base = tables.pop()
        seen += 1
        if vmm.machine.kind[mpn] != FrameKind.NESTED:
            yield Violation("I4", f"nested table level {level}", _frame(vmm.machine, mpn), "NESTED")
        for slot in np.flatnonzero(content[mpn] & EPT_RIGHTS).tolist():
            entry = int(content[mpn, slot])
            page = base + (slot << (9 * (level - 1)))
            target = (entry & ENTRY_ADDRESS_MASK) >> 12
            if entry & EPT_LARGE and level == 2:
                yield from _check_large_page(vmm, page, target)
            elif level > 1:
                tables.append((target, level - 1, page))
            else:
                where = f"nested entry of PPN {page:#x}"
                yield from _check_mapping(vmm, where, page, target, bool(entry & EPT_WRITE))
    if seen != vmm.state.nested_tables:
        yield Violation("I4", "nested tables", str(seen), str(int(vmm.state.nested_tables)))


def _check_large_page(
    vmm: VirtualMachineMonitor, first_ppn: int, first_mpn: int
) -> Iterator[Violation]:
    """A large entry maps 512 private pages that lie in order in one run of frames."""
    pages = np.arange(first_ppn, first_ppn + LARGE_PAGES)
    frames = vmm.pmap.frame[pages].astype(np.int64)
    wrong = (vmm.pmap.state[pages] != PageState.PRIVATE) | (
        frames != np.arange(first_mpn, first_mpn + LARGE_PAGES)
    )
    for ppn in pages[wrong].tolist():
        state = vmm.pmap.state_of(ppn).name
        found = f"PPN {ppn:#x} {state} at {vmm.pmap.frame[ppn]:#x}"
        expected = f"private at MPN {first_mpn + ppn - first_ppn:#x}"
        yield Violation("I1", f"large nested entry of PPN {first_ppn:#x}", found, expected)
    if not vmm.pmap.large[first_ppn // LARGE_PAGES]:
        yield Violation("I1", f"large nested entry of PPN {first_ppn:#x}", "no large page", "one")


def _check_references(
    machine: MachineMemory, vmms: list[VirtualMachineMonitor]
) -> Iterator[Violation]:
    mapped = np.zeros(machine.frames, np.int64)
    for vmm in vmms:
        shared = vmm.pmap.frame[vmm.pmap.state == PageState.SHARED]
        np.add.at(mapped, shared, 1)
    frames = np.flatnonzero((machine.kind == FrameKind.SHARED) | (mapped > 0))
    wrong = frames[mapped[frames] != machine.references[frames]]
    for mpn in wrong.tolist():
        yield Violation("I3", _frame(machine, mpn), str(machine.references[mpn]), str(mapped[mpn]))


def _check_frames(machine: MachineMemory, vmms: list[VirtualMachineMonitor]) -> Iterator[Violation]:
    free = machine._free[: machine._free_count]
    if np.unique(free).size != free.size:
        yield Violation("I4", "free list", "a frame twice", "every frame once")
    on_list = np.zeros(machine.frames, bool)
    on_list[free] = True
    wrong = np.flatnonzero(on_list != (machine.kind == FrameKind.FREE))
    for mpn in wrong.tolist():
        yield Violation("I4", "free list", _frame(machine, mpn), "free if and only if listed")
    for vmm in vmms:
        mine = machine.owned_by(vmm.vm_id)
        kinds = machine.kind[mine]
        guest = int(np.count_nonzero(kinds == FrameKind.GUEST))
        private = vmm.pmap.count(PageState.PRIVATE)
        if guest != private:
            yield Violation(
                "I4", f"VM {vmm.vm_id}", f"{guest} GUEST frames", f"{private} private pages"
            )
        held = 0 if vmm.compressed is None else vmm.compressed.frames
        for kind, expected in (
            (FrameKind.RESERVE, vmm.reserve.count),
            (FrameKind.COMPRESSED, held),
        ):
            found = int(np.count_nonzero(kinds == kind))
            if found != expected:
                yield Violation(
                    "I4", f"VM {vmm.vm_id}", f"{found} {kind.name} frames", f"{expected}"
                )
