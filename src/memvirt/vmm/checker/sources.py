# SPDX-License-Identifier: Apache-2.0
"""Where the VMM keeps what the checker audits: the only module here that knows.

Everything is handed out as arrays of signed 64-bit words or of their own small types, as it
stands, with nothing believed of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memvirt.address import PhysicalPageNumber
from memvirt.machine.memory import NOBODY, FrameKind, MachineMemory
from memvirt.mmu.entry import CR4_PSE
from memvirt.vmm.content import COMPRESS, SWAP
from memvirt.vmm.paging.nested_paging import NestedPaging
from memvirt.vmm.paging.shadow_paging import ShadowPaging
from memvirt.vmm.pmap import PageState
from memvirt.vmm.stores.backing import BackingStore

from .violation import Array

if TYPE_CHECKING:
    from memvirt.vmm.monitor import VirtualMachineMonitor


def words_of(machine: MachineMemory) -> Array:
    """Machine memory as signed words, one row of 512 a frame."""
    return machine.content.view(np.int64).reshape(-1, 512)


def in_machine(machine: MachineMemory, mpns: Array) -> Array:
    """Which of ``mpns`` are frames of this machine."""
    return np.asarray((mpns >= 0) & (mpns < machine.frames))


def free_list(machine: MachineMemory) -> Array:
    """MPNs on the list of free frames."""
    return machine.free_list().astype(np.int64)


def frame_text(machine: MachineMemory, mpn: int) -> str:
    """A frame for people, whatever number it has."""
    if not 0 <= mpn < machine.frames:
        return f"MPN {mpn:#x}, beyond the machine's {machine.frames} frames"
    number = int(machine.kind[mpn])
    kind = FrameKind(number).name if number in tuple(FrameKind) else f"kind {number}"
    owner = max(int(machine.owner[mpn]), NOBODY)
    return (
        f"MPN {mpn:#x} {kind} owner {owner} detail {machine.guest_ppn[mpn]:#x} "
        f"references {machine.references[mpn]}"
    )


def reserve_frames(vmm: VirtualMachineMonitor) -> Array:
    """MPNs in the VM's reserve."""
    return np.asarray(vmm.reserve._stack[: max(vmm.reserve.count, 0)], np.int64)


def given_up_frames(vmm: VirtualMachineMonitor) -> Array:
    """MPNs the VM has let go of, once for each reference, that are released when it settles."""
    given_up = vmm.reserve._given_up
    return np.concatenate([np.zeros(0, np.int64), *(each.astype(np.int64) for each in given_up)])


def ballooned_count(vmm: VirtualMachineMonitor) -> int:
    """Pages in the balloon, as the VMM counts them."""
    return int(vmm.state.ballooned_pages)


@dataclass(frozen=True, slots=True)
class KeptPages:
    """The pages of a VM that are in one store, if there is one of that name."""

    name: str
    store: BackingStore | None
    ppns: Array


def kept_pages(vmm: VirtualMachineMonitor) -> list[KeptPages]:
    """Pages without a frame that are not empty, by the store they are said to be in."""
    contents, state = vmm.contents, vmm.pmap.state
    pages = {
        COMPRESS: np.flatnonzero(state == PageState.COMPRESSED),
        SWAP: np.flatnonzero(state == PageState.SWAPPED),
    }
    for ppn in np.flatnonzero(state == PageState.STORED).tolist():
        name = contents._elsewhere.get(PhysicalPageNumber(ppn), "none")
        pages[name] = np.append(pages.get(name, np.zeros(0, np.int64)), ppn)
    names = dict.fromkeys((*pages, *contents.stores))
    nothing = np.zeros(0, np.int64)
    return [KeptPages(name, contents.stores.get(name), pages.get(name, nothing)) for name in names]


@dataclass(frozen=True, slots=True)
class NestedTables:
    """The nested table of one VM, and the cache of its entries of level 2."""

    root: int  # MPN
    count: int  # tables, as the VMM counts them
    cache_tag: Array  # gPA >> 21, + 1, by slot of the nested cache, 0: free
    cache_entry: Array
    physical_address_bits: int


def nested_tables(vmm: VirtualMachineMonitor) -> NestedTables | None:
    """The nested table, None if the VM has none."""
    if not isinstance(vmm.page_tables, NestedPaging):
        return None
    cache, state = vmm.page_tables.nested_cache, vmm.state
    return NestedTables(
        root=int(state.mmu.nested_root),
        count=int(state.nested_tables),
        cache_tag=cache["tag"],
        cache_entry=cache["entry"],
        physical_address_bits=int(state.mmu.physical_address_bits),
    )


@dataclass(frozen=True, slots=True)
class RememberedWalks:
    """The walks of four levels that the cache of guest walks holds now, a row each."""

    memory_at: int  # host address of machine memory
    region: Array  # gVA >> 21
    cr3: Array
    leaf_level: Array
    upper_at: Array  # host addresses of the upper entries, by step from level 4 down
    upper_entry: Array
    leaf_table_at: Array


def remembered_walks(vmm: VirtualMachineMonitor) -> RememberedWalks | None:
    """What the cache of guest walks holds, None if the VM has none."""
    if not isinstance(vmm.page_tables, NestedPaging):
        return None
    cache = vmm.page_tables.walk_cache
    cache = cache[cache["generation"] == vmm.state.mmu.walk_cache_generation]
    return RememberedWalks(
        memory_at=int(vmm.state.mmu.memory_at),
        region=cache["region"],
        cr3=cache["cr3"],
        leaf_level=cache["leaf_level"],
        upper_at=cache["upper_at"],
        upper_entry=cache["upper_entry"],
        leaf_table_at=cache["leaf_table_at"],
    )


@dataclass(frozen=True, slots=True)
class ShadowTables:
    """The pool of shadow pages of one VM: fields by shadow page, links by entry."""

    capacity: int
    used_count: int  # as the VMM counts them
    free_head: int
    root_index: int  # -1: none
    root_mpn: int
    root_levels: int
    has_page_size_extension: bool  # CR4.PSE: entries of a 32-bit guest may map 4 MiB
    mpn: Array
    ppn: Array
    level: Array
    part: Array
    direct: Array  # 0: derived from a guest table
    mode: Array
    used: Array  # bool
    unsynchronized: Array  # bool
    hash_next: Array
    hash_heads: Array
    listed_unsynchronized: Array  # shadow pages on the list of unsynchronized ones
    copies: Array  # guest entry by entry (shadow page * 512 + slot)
    rmap_heads: Array  # first entry by PPN
    parent_heads: Array  # first entry by shadow page
    next: Array  # by entry
    previous: Array

    def key_columns(self) -> tuple[Array, ...]:
        """What a shadow page is found by: no two have the same."""
        return self.ppn, self.level, self.part, self.direct


@dataclass(frozen=True, slots=True)
class ShadowEntries:
    """Present entries of shadow pages, in the order of their tables."""

    table: Array  # shadow page each lies in
    slot: Array
    entry: Array
    target: Array  # PPN of a leaf, shadow page of a non-leaf; -1 if no list has the entry

    def select(self, which: Array) -> ShadowEntries:
        """Those of a mask, or at positions."""
        return ShadowEntries(
            self.table[which], self.slot[which], self.entry[which], self.target[which]
        )

    def link(self, i: int) -> int:
        """The link of entry ``i`` (shadow page * 512 + slot)."""
        return int(self.table[i]) << 9 | int(self.slot[i])


def shadow_tables(vmm: VirtualMachineMonitor) -> ShadowTables | None:
    """The pool of shadow pages, None if the VM has none."""
    if not isinstance(vmm.page_tables, ShadowPaging):
        return None
    pool, pages, state = vmm.page_tables, vmm.page_tables.pages, vmm.state.shadow
    listed = max(int(state.unsynchronized_count), 0)
    return ShadowTables(
        capacity=pages.size,
        used_count=int(state.used),
        free_head=int(state.free_head),
        root_index=int(state.root_index),
        root_mpn=int(vmm.state.mmu.shadow_root),
        has_page_size_extension=bool(int(vmm.state.mmu.cr4) & CR4_PSE),
        root_levels=int(vmm.state.mmu.shadow_levels),
        mpn=pages["mpn"],
        ppn=pages["ppn"],
        level=pages["level"],
        part=pages["part"],
        direct=pages["direct"],
        mode=pages["mode"],
        used=pages["used"] != 0,
        unsynchronized=pages["unsynchronized"] != 0,
        hash_next=pages["hash_next"],
        hash_heads=pool._hash,
        listed_unsynchronized=pool._unsynchronized[:listed],
        copies=pool._copy,
        rmap_heads=pool.rmap_head,
        parent_heads=pool._parent,
        next=pool.rmap_next,
        previous=pool.rmap_previous,
    )
