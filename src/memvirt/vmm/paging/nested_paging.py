# SPDX-License-Identifier: Apache-2.0
"""Nested paging as the VMM handles it: the nested table, and what the host does to it."""

from __future__ import annotations

import numpy as np

from memvirt.address import MachinePageNumber, PhysicalPageNumber, PpnArray
from memvirt.machine.memory import FrameKind, MachineMemory
from memvirt.mmu.host_ranges import host_address
from memvirt.mmu.mmu_state import NESTED_CACHE_DTYPE, NESTED_CACHE_ENTRIES
from memvirt.mmu.walk_cache import WALK_CACHE_DTYPE, WALK_CACHE_ENTRIES
from memvirt.vmm.vmm_state import VmmState

from .mode import PagingMode
from .nested import drop_empty_table, drop_nested_entries


class NestedPaging:
    """The nested table of one VM, in EPT format, empty but for its root.

    Raises MachineMemoryExhausted if there is no frame for that.
    """

    mode = PagingMode.NESTED
    remaps = True
    has_large_pages = True

    def __init__(self, vmm: VmmState, machine: MachineMemory) -> None:
        self._vmm = vmm
        self.nested_cache = np.zeros(NESTED_CACHE_ENTRIES, NESTED_CACHE_DTYPE)
        vmm.mmu.is_nested = 1
        vmm.mmu.nested_cache_at = host_address(self.nested_cache, "nested cache")
        self.walk_cache = np.zeros(WALK_CACHE_ENTRIES, WALK_CACHE_DTYPE)
        vmm.mmu.walk_cache_at = host_address(self.walk_cache, "cache of guest walks")
        vmm.mmu.walk_cache_generation = 1
        root = machine.allocate(kind=FrameKind.NESTED, owner=int(vmm.vm_id), detail=4)
        vmm.mmu.nested_root = root[0]
        vmm.nested_tables = 1

    @property
    def table_frames(self) -> int:
        return int(self._vmm.nested_tables)

    def invalidate(self, ppns: PpnArray) -> int:
        return int(drop_nested_entries(self._vmm, ppns))

    def forget_guest_tables(self) -> None:
        """The nested table derives from the pmap alone: there is nothing to forget."""

    def release_table_below(self, first_ppn: PhysicalPageNumber) -> MachinePageNumber | None:
        mpn = MachinePageNumber(drop_empty_table(self._vmm, first_ppn))
        return None if mpn < 0 else mpn
