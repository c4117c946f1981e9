# SPDX-License-Identifier: Apache-2.0
"""Pages without a frame: each names a slot of its own, in which there is a page (I4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from memvirt.vmm.stores.backing import BackingStore, BackingStoreError, PageCorrupted

from .pages import state_name
from .sources import kept_pages
from .violation import Array, Told, Violation

if TYPE_CHECKING:
    from memvirt.vmm.monitor import VirtualMachineMonitor

_Kept = list[tuple[int, int, int]]  # (VM, PPN, slot)


def check_stores(
    vmms: Sequence[VirtualMachineMonitor], *, all_of_them: bool
) -> Iterator[Violation]:
    """Rules between pmaps and stores; a store may be that of several VMs.

    Unless ``vmms`` are ``all_of_them``, a slot that none of them names may be another's.
    """
    stores: dict[int, tuple[str, BackingStore]] = {}
    pages: dict[int, _Kept] = {}
    for vmm in vmms:
        for kept in kept_pages(vmm):
            if kept.store is None:
                told = Told("I4", f"pages of VM {vmm.vm_id} in store {kept.name}")
                for ppn in told.first(kept.ppns):
                    where = f"PPN {ppn:#x} of VM {vmm.vm_id}"
                    found = f"{state_name(vmm, ppn)} in store {kept.name}"
                    yield Violation("I4", where, found, "another state: there is no such store")
                yield from told.rest()
                continue
            stores[id(kept.store)] = kept.name, kept.store
            slots = vmm.pmap.frame[kept.ppns].tolist()
            named = zip(kept.ppns.tolist(), slots, strict=True)
            pages.setdefault(id(kept.store), []).extend((vmm.vm_id, *page) for page in named)
    for key, (name, store) in stores.items():
        yield from _check_slots(store, pages[key], name, all_of_them=all_of_them)


def _check_slots(
    store: BackingStore, kept: _Kept, name: str, *, all_of_them: bool
) -> Iterator[Violation]:
    named: Array = np.array([slot for _, _, slot in kept], np.int64)
    used: Array = store.slots_in_use()
    told = Told("I4", f"slots of store {name}")
    for i in told.first(~np.isin(named, used)):
        vm_id, ppn, slot = kept[i]
        where, found = f"PPN {ppn:#x} of VM {vm_id}", f"kept in {name} slot {slot:#x}"
        yield Violation("I4", where, found, "a slot that holds a page")
    yield from told.rest()
    _, first, times = np.unique(named, return_index=True, return_counts=True)
    for i in told.first(times > 1):
        slot = int(named[first[i]])
        sharers = [f"PPN {ppn:#x} of VM {vm}" for vm, ppn, other in kept if other == slot]
        yield Violation("I4", f"{name} slot {slot:#x}", " and ".join(sharers), "one page")
    yield from told.rest()
    if all_of_them:
        for slot in told.first(np.setdiff1d(used, named)):
            where = f"{name} slot {slot:#x}"
            yield Violation("I4", where, "a page that no PPN names", "a page of the guest's")
        yield from told.rest()


def check_owners_in_stores(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """A store that lets its oldest pages go names their PPNs: the pmap agrees."""
    for kept in kept_pages(vmm):
        if kept.store is None:
            continue
        told = Told("I4", f"pages of VM {vmm.vm_id} that store {kept.name} would let go")
        pages = kept.store.oldest(vmm.pmap.pages)
        slots = dict(zip(kept.ppns.tolist(), vmm.pmap.frame[kept.ppns].tolist(), strict=True))
        wrong = np.array([slots.get(ppn) != slot for ppn, slot in pages], bool)
        for i in told.first(wrong):
            ppn, slot = pages[i]
            where = f"page in {kept.name} slot {slot:#x}"
            yield Violation("I4", where, f"kept for PPN {ppn:#x}", "the PPN that names the slot")
        yield from told.rest()


def check_kept_pages(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """Every page that a store keeps can be read back as it went in.

    A store that cannot be read just now (BackingStoreError) has lost nothing.
    """
    told = Told("I5", f"pages kept of VM {vmm.vm_id}")
    damaged = {}
    for ppn in np.concatenate([kept.ppns for kept in kept_pages(vmm)]).tolist():
        try:
            vmm.read_page(ppn)
        except PageCorrupted as error:
            damaged[ppn] = str(error)
        except (BackingStoreError, LookupError, ValueError, AssertionError):
            continue  # a slot that does not exist is `check_stores`'s to tell
    for ppn in told.first(np.array(list(damaged), np.int64)):
        yield Violation("I5", f"PPN {ppn:#x}", damaged[ppn], "the page that was kept")
    yield from told.rest()
