# SPDX-License-Identifier: Apache-2.0
"""Pages without a frame: each names a slot of its own, in which there is a page (I4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from memvirt.vmm.backing import BackingStore, BackingStoreError, CompressedPages, PageCorrupted
from memvirt.vmm.pmap import PageState

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
    for state in (PageState.SWAPPED, PageState.COMPRESSED):
        stores: dict[int, BackingStore | CompressedPages] = {}
        kept: dict[int, _Kept] = {}
        for vmm in vmms:
            store = vmm.backing if state is PageState.SWAPPED else vmm.compressed
            ppns = np.flatnonzero(vmm.pmap.state == state)
            if store is None:
                told = Told("I4", f"{state.name} pages of VM {vmm.vm_id}")
                for ppn in told.first(ppns):
                    where = f"PPN {ppn:#x} of VM {vmm.vm_id}"
                    yield Violation("I4", where, state.name, "another state: there is no store")
                yield from told.rest()
                continue
            stores[id(store)] = store
            slots = vmm.pmap.frame[ppns].tolist()
            pages = zip(ppns.tolist(), slots, strict=True)
            kept.setdefault(id(store), []).extend((vmm.vm_id, *page) for page in pages)
        for key, store in stores.items():
            yield from _check_slots(store, kept[key], state.name, all_of_them=all_of_them)


def _check_slots(
    store: BackingStore | CompressedPages, kept: _Kept, state: str, *, all_of_them: bool
) -> Iterator[Violation]:
    named: Array = np.array([slot for _, _, slot in kept], np.int64)
    used: Array = store.slots_in_use()
    told = Told("I4", f"slots of {state} pages")
    for i in told.first(~np.isin(named, used)):
        vm_id, ppn, slot = kept[i]
        where = f"PPN {ppn:#x} of VM {vm_id}"
        yield Violation("I4", where, f"{state} in slot {slot:#x}", "a slot that holds a page")
    yield from told.rest()
    _, first, times = np.unique(named, return_index=True, return_counts=True)
    for i in told.first(times > 1):
        slot = int(named[first[i]])
        pages = [f"PPN {ppn:#x} of VM {vm}" for vm, ppn, other in kept if other == slot]
        yield Violation("I4", f"slot {slot:#x}", f"{state} " + " and ".join(pages), "one page")
    yield from told.rest()
    if all_of_them:
        for slot in told.first(np.setdiff1d(used, named)):
            yield Violation("I4", f"slot {slot:#x}", "a page no PPN names", f"a {state} page")
        yield from told.rest()


def check_compressed_owners(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """A compressed page that must leave for swap finds its PPN: the cache knows it too."""
    if vmm.compressed is None:
        return
    told = Told("I4", f"compressed pages of VM {vmm.vm_id}")
    pages = vmm.compressed.oldest(vmm.pmap.pages)
    wrong = np.array([_disagrees(vmm, ppn, slot) for ppn, slot in pages], bool)
    for i in told.first(wrong):
        ppn, slot = pages[i]
        where = f"compressed page in slot {slot:#x}"
        yield Violation("I4", where, f"kept for PPN {ppn:#x}", "the PPN that names the slot")
    yield from told.rest()


def _disagrees(vmm: VirtualMachineMonitor, ppn: int, slot: int) -> bool:
    return not 0 <= ppn < vmm.pmap.pages or (
        vmm.pmap.state[ppn] != PageState.COMPRESSED or int(vmm.pmap.frame[ppn]) != slot
    )


def check_kept_pages(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """Every page that a store keeps can be read back as it went in.

    A store that cannot be read just now (BackingStoreError) has lost nothing.
    """
    told = Told("I5", f"pages kept of VM {vmm.vm_id}")
    damaged = {}
    for ppn in np.flatnonzero(vmm.pmap.state > PageState.SHARED).tolist():
        try:
            vmm.read_page(ppn)
        except PageCorrupted as error:
            damaged[ppn] = str(error)
        except (BackingStoreError, KeyError, IndexError, ValueError, AssertionError):
            continue  # a slot that does not exist is `check_stores`'s to tell
    for ppn in told.first(np.array(list(damaged), np.int64)):
        yield Violation("I5", f"PPN {ppn:#x}", damaged[ppn], "the page that was kept")
    yield from told.rest()
