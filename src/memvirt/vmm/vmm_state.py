# SPDX-License-Identifier: Apache-2.0
"""The state of one VMM, as its compiled code shares it with Python: one record per VM.

In the role that Intel's VMCS plays for VT-x: the processor finds everything about its VM's memory
from this record's host address. The Python objects that set the ``*_at`` fields (``pmap.Pmap``,
``reserve.FrameReserve``, ``paging``) own the arrays and keep them alive.
"""

from __future__ import annotations

from memvirt.address import MachinePageNumber, PhysicalPageNumber
from memvirt.mmu.mmu_state import MmuState
from memvirt.mmu.native import record_reference
from memvirt.state_record import Record, record_dtype


class ShadowState(Record):
    """The cache of shadow pages of one VM (``paging.shadow_table``)."""

    root_index: int  # shadow page of ``mmu.shadow_root``, -1: none
    root_cr3: int  # CR3 and
    mode: int  # mode signature it was built for
    capacity: int
    free_head: int
    used: int
    pages_at: int  # ShadowPage by index
    copy_at: int  # int64 by entry (index * 512 + slot): the guest entry it was derived from
    rmap_next_at: int  # int32 by entry
    rmap_previous_at: int
    parent_at: int  # int32 by index: head of the list of entries that point to it
    hash_at: int  # int32 buckets
    hash_mask: int
    unsynchronized_at: int  # int32 stack of indices
    unsynchronized_count: int
    stale: int  # the processor must flush before guest code runs: it may hold what is gone


class VmmState(Record):
    """See the module docstring."""

    mmu: MmuState
    shadow: ShadowState
    vm_id: int
    paging: int  # PagingMode
    # The pmap, beyond what the walkers read of it.
    pmap_large_at: int  # uint8 by run of 512 PPNs
    pmap_counts_at: int  # int64 by PageState: pages in it
    rmap_head_at: int  # int32 by PPN: its shadow entries
    # Per-frame arrays of machine memory.
    frame_kind_at: int  # uint8 by MPN
    frame_detail_at: int  # int32 by MPN (MachineMemory.guest_ppn and its other names)
    # Reserve of zeroed frames already owned by this VM (MPNs, a stack).
    reserve_at: int
    reserve_count: int
    nested_tables: int  # frames of the nested table
    # Why the VMM's Python has to act (NEED_PAGE).
    exit_ppn: PhysicalPageNumber
    exit_write: int
    # Virtual time the guest waited for its own pages. The processor's clock includes it.
    stall_ns: int
    ballooned_pages: int  # pages with FLAG_BALLOONED now
    balloon_touched: int  # those the guest touched without unlocking them, ever
    # Counters.
    frames_demand_allocated: int
    sampled_touches: int
    walks: int
    guest_walk_references: int
    hidden_faults: int
    true_faults: int
    trace_faults: int
    resynchronizations: int
    revalidations: int
    entries_dropped: int
    root_switches: int
    shadow_zaps: int


VMM_DTYPE = record_dtype(VmmState)
vmm_state_at = record_reference(VmmState)


class ShadowPage(Record):
    """One shadow page: a 512-entry table and what it derives from."""

    mpn: MachinePageNumber  # its frame, -1 if it never had one
    ppn: PhysicalPageNumber  # the guest table, or the first PPN of a direct page
    level: int
    part: int  # which part of the guest table
    direct: int  # derived from no guest table: DIRECT_*
    mode: int  # paging mode of the guest table
    used: int
    unsynchronized: int
    trace_faults: int  # times the guest wrote to it while traced
    hash_next: int  # next in its bucket, or next free


SHADOW_PAGE_DTYPE = record_dtype(ShadowPage)
SHADOW_PAGE_BYTES = SHADOW_PAGE_DTYPE.itemsize
shadow_page_at = record_reference(ShadowPage)
