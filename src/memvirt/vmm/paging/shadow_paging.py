# SPDX-License-Identifier: Apache-2.0
"""Shadow paging as the VMM handles it: the pool of shadow pages, and what the host does to them."""

from __future__ import annotations

import numpy as np

from memvirt.address import MachinePageNumber, PhysicalPageNumber, PpnArray
from memvirt.machine.reserved import reserved_zeros
from memvirt.mmu.host_ranges import host_address
from memvirt.vmm.vmm_state import SHADOW_PAGE_DTYPE, VmmState

from .mode import PagingMode
from .shadow_table import drop_mappings_of, zap_all


def shadow_capacity(pages: int) -> int:
    """Shadow pages for a VM of ``pages`` pages: its own tables, with room to spare."""
    return 256 + pages // 64


class ShadowPaging:
    """The shadow page tables of a VM of ``pages`` pages. Frames are taken as they are needed."""

    mode = PagingMode.SHADOW
    remaps = True
    has_large_pages = False

    def __init__(self, vmm: VmmState, pages: int) -> None:
        capacity = shadow_capacity(pages)
        buckets = 1 << (capacity - 1).bit_length()
        self._vmm = vmm
        self.pages = reserved_zeros(capacity, SHADOW_PAGE_DTYPE)
        self.pages["mpn"] = -1
        self._copy = reserved_zeros(capacity * 512, np.int64)
        self.rmap_head = np.full(pages, -1, np.int32)  # by PPN: its first shadow entry, or -1
        self.rmap_next = reserved_zeros(capacity * 512, np.int32)
        self.rmap_previous = reserved_zeros(capacity * 512, np.int32)
        self._parent = np.full(capacity, -1, np.int32)
        self._hash = np.full(buckets, -1, np.int32)
        self._unsynchronized = np.zeros(capacity, np.int32)
        state = vmm.shadow
        state.capacity = capacity
        state.pages_at = host_address(self.pages, "shadow pages")
        state.copy_at = host_address(self._copy, "shadow copy")
        vmm.rmap_head_at = host_address(self.rmap_head, "shadow rmap_head")
        state.rmap_next_at = host_address(self.rmap_next, "shadow rmap_next")
        state.rmap_previous_at = host_address(self.rmap_previous, "shadow rmap_previous")
        state.parent_at = host_address(self._parent, "shadow parent")
        state.hash_at = host_address(self._hash, "shadow hash")
        state.hash_mask = buckets - 1
        state.unsynchronized_at = host_address(self._unsynchronized, "shadow unsynchronized")
        zap_all(vmm)
        vmm.shadow_zaps = 0
        state.stale = 0

    @property
    def bytes_per_shadow_page(self) -> int:
        """Bytes kept beside the frame of each shadow page in use; for others they are reserved,
        and the operating system has given no memory for them."""
        by_entry = (self._copy, self.rmap_next, self.rmap_previous)
        return sum(array.nbytes for array in by_entry) // self.pages.size

    @property
    def table_frames(self) -> int:
        """Frames of the pool, those of unused shadow pages included."""
        return int(np.count_nonzero(self.pages["mpn"] >= 0))

    def invalidate(self, ppns: PpnArray) -> int:
        return int(drop_mappings_of(self._vmm, ppns))

    def forget_guest_tables(self) -> None:
        zap_all(self._vmm)

    def release_table_below(self, first_ppn: PhysicalPageNumber) -> MachinePageNumber | None:
        return None
