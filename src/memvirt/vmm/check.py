# SPDX-License-Identifier: Apache-2.0
"""The consistency checker: the invariants of docs/architecture.md, audited and never repaired.

I1  A shadow entry maps a PPN only to the frame the pmap names, and, while its guest table is
    traced, where the guest's entry maps it, with no more rights. (An entry of an unsynchronized
    table may be out of date: it is compared with the guest's before each use.) A nested entry, and
    a translation cached from it, maps a PPN to the frame the pmap names. Every table, list and
    pointer that leads there is whole.
I2  No writable mapping of a page that is not private exists.
I3  The reference count of a frame is the number of pages mapped to it, plus VMM uses.
I4  Every frame is free or owned, never both, and a private frame is owned by the VM and names its
    PPN; every page without a frame names a slot of its own, in which there is a page; frames in a
    reserve are zeroed.
I5  (Content) is proved by guests that verify their memory; here only that kept pages can be read.
I6  A shared frame is mapped by VMs of its own salt only.
I7  A page that counts as unwritten is private, and the processor can write to it only by asking.
    (That its content is what it was is checked by who
    remembers it: ``vmkernel.sharing.PageSharing.wrong_keys``.)

Call it at a quiescent point: all processors stopped. It bears any state of the guest and any damage
of what it audits. One module of ``checker`` for each group of rules.
"""

from __future__ import annotations

from collections.abc import Iterable

from memvirt.machine.memory import MachineMemory

from .checker.frames import check_frames, check_reserve, check_reserve_is_zeroed
from .checker.nested import check_nested
from .checker.pages import check_pages
from .checker.shadow import check_shadow
from .checker.stores import check_kept_pages, check_owners_in_stores, check_stores
from .checker.violation import CheckLevel, Violation
from .checker.walk_cache import check_walk_cache
from .monitor import VirtualMachineMonitor

__all__ = ["CheckLevel", "Violation", "check_machine", "check_vm"]


def check_vm(vmm: VirtualMachineMonitor, level: CheckLevel = CheckLevel.MEMORY) -> list[Violation]:
    """Violations inside one VM, by all rules up to ``level``."""
    return [*_check_inside(vmm, level), *check_stores([vmm], all_of_them=False)]


def _check_inside(vmm: VirtualMachineMonitor, level: CheckLevel) -> list[Violation]:
    found = [*check_pages(vmm), *check_reserve(vmm), *check_owners_in_stores(vmm)]
    if level >= CheckLevel.MEMORY:
        found += check_shadow(vmm)
        found += check_nested(vmm)
        found += check_walk_cache(vmm)
        found += check_reserve_is_zeroed(vmm)
    if level >= CheckLevel.STORES:
        found += check_kept_pages(vmm)
    return found


def check_machine(
    machine: MachineMemory,
    vmms: Iterable[VirtualMachineMonitor],
    level: CheckLevel = CheckLevel.MEMORY,
) -> list[Violation]:
    """Violations in machine memory and in every VM on it. ``vmms`` must be all of them."""
    vmms = list(vmms)
    found: list[Violation] = []
    for vmm in vmms:
        found += _check_inside(vmm, level)
    found += check_stores(vmms, all_of_them=True)
    found += check_frames(machine, vmms)
    return found
