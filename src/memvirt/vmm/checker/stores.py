# SPDX-License-Identifier: Apache-2.0
"""Pages without a frame: each names a slot of its own, in which there is a page (I4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from memvirt.vmm.pmap import PageState
from memvirt.vmm.stores.backing import BackingStore, BackingStoreError, PageCorrupted

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
    kept: dict[int, _Kept] = {}
    for vmm in vmms:
        yield from _check_homeless(vmm)
        for name, store in vmm.contents.stores.items():
            ppns = vmm.contents.kept_in(name)
            stores[id(store)] = name, store
            pages = zip(ppns.tolist(), vmm.pmap.frame[ppns].tolist(), strict=True)
            kept.setdefault(id(store), []).extend((vmm.vm_id, *page) for page in pages)
    for key, (name, store) in stores.items():
        yield from _check_slots(store, kept[key], name, all_of_them=all_of_them)


def _check_homeless(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """Every kept page is in a store that there is."""
    told = Told("I4", f"kept pages of VM {vmm.vm_id}")
    contents = vmm.contents
    found = [contents.kept_in(name) for name in contents.stores]
    homeless = np.setdiff1d(contents.kept(), np.concatenate([*found, np.zeros(0, np.int64)]))
    for ppn in told.first(homeless):
        state = PageState(int(vmm.pmap.state[ppn])).name
        where = f"PPN {ppn:#x} of VM {vmm.vm_id}"
        yield Violation("I4", where, state, "another state: there is no store")
    yield from told.rest()


def _check_slots(
    store: BackingStore, kept: _Kept, name: str, *, all_of_them: bool
) -> Iterator[Violation]:
    named: Array = np.array([slot for _, _, slot in kept], np.int64)
    used: Array = store.slots_in_use()
    told = Told("I4", f"slots of {name}")
    for i in told.first(~np.isin(named, used)):
        vm_id, ppn, slot = kept[i]
        where = f"PPN {ppn:#x} of VM {vm_id}"
        yield Violation("I4", where, f"{name} slot {slot:#x}", "a slot that holds a page")
    yield from told.rest()
    _, first, times = np.unique(named, return_index=True, return_counts=True)
    for i in told.first(times > 1):
        slot = int(named[first[i]])
        pages = [f"PPN {ppn:#x} of VM {vm}" for vm, ppn, other in kept if other == slot]
        yield Violation("I4", f"{name} slot {slot:#x}", " and ".join(pages), "one page")
    yield from told.rest()
    if all_of_them:
        for slot in told.first(np.setdiff1d(used, named)):
            yield Violation(
                "I4", f"{name} slot {slot:#x}", "a page no PPN names", "a PPN that names it"
            )
        yield from told.rest()


def check_owners(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """A kept page that must leave for another store finds its PPN: its store knows it too."""
    for name, store in vmm.contents.stores.items():
        told = Told("I4", f"{name} pages of VM {vmm.vm_id}")
        pages = store.oldest(vmm.pmap.pages)
        kept = set(vmm.contents.kept_in(name).tolist())
        wrong = np.array(
            [ppn not in kept or int(vmm.pmap.frame[ppn]) != slot for ppn, slot in pages], bool
        )
        for i in told.first(wrong):
            ppn, slot = pages[i]
            where = f"{name} slot {slot:#x}"
            yield Violation("I4", where, f"kept for PPN {ppn:#x}", "the PPN that names the slot")
        yield from told.rest()


def check_kept_pages(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """Every page that a store keeps can be read back as it went in.

    A store that cannot be read just now (BackingStoreError) has lost nothing.
    """
    told = Told("I5", f"pages kept of VM {vmm.vm_id}")
    damaged = {}
    for ppn in vmm.contents.kept().tolist():
        try:
            vmm.read_page(ppn)
        except PageCorrupted as error:
            damaged[ppn] = str(error)
        except (BackingStoreError, KeyError, IndexError, ValueError, AssertionError):
            continue  # a slot that does not exist is `check_stores`'s to tell
    for ppn in told.first(np.array(list(damaged), np.int64)):
        yield Violation("I5", f"PPN {ppn:#x}", damaged[ppn], "the page that was kept")
    yield from told.rest()
