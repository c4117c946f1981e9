# SPDX-License-Identifier: Apache-2.0
"""The one place where a paging mode is chosen."""

from __future__ import annotations

from memvirt.machine.memory import MachineMemory
from memvirt.vmm.pmap import Pmap
from memvirt.vmm.vmm_state import VmmState

from .flat import FlatPaging
from .interface import Paging
from .mode import PagingMode
from .nested_paging import NestedPaging
from .shadow_paging import ShadowPaging, shadow_capacity


def new_paging(mode: PagingMode, vmm: VmmState, machine: MachineMemory, pmap: Pmap) -> Paging:
    """The page tables of a new VM whose record and pmap are set up.

    Raises MachineMemoryExhausted, with no frame taken, if there are too few.
    """
    if mode is PagingMode.SHADOW:
        return ShadowPaging(vmm, pmap.pages)
    if mode is PagingMode.NESTED:
        return NestedPaging(vmm, machine)
    return FlatPaging(machine, pmap, int(vmm.vm_id))


def most_table_frames(mode: PagingMode, pages: int) -> int:
    """The most frames that the tables of a VM of ``pages`` pages can take."""
    if mode is PagingMode.SHADOW:
        return shadow_capacity(pages)
    if mode is PagingMode.NESTED:
        return sum(-(-pages // 512**level) for level in (1, 2, 3)) + 1
    return 0
