# SPDX-License-Identifier: Apache-2.0
"""The cache of guest walks of a VM in nested mode (I1): tables lie where it remembers them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from memvirt.address import PAGE_SHIFT
from memvirt.mmu.entry import ENTRY_ADDRESS_MASK
from memvirt.vmm.pmap import RESIDENT

from .sources import remembered_walks
from .violation import Array, Told, Violation

if TYPE_CHECKING:
    from memvirt.vmm.monitor import VirtualMachineMonitor


def check_walk_cache(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """Each table of a remembered walk is in the frame that the pmap names for its PPN.

    The PPNs are those that CR3 and the remembered entries point to. What the guest has made of the
    tables since is no matter: every look-up reads them again.
    """
    walks = remembered_walks(vmm)
    if walks is None:
        return
    pointers = np.column_stack([walks.cr3, walks.upper_entry])
    addresses = np.column_stack([walks.upper_at, walks.leaf_table_at])
    for step, level in enumerate((4, 3, 2, 1)):
        at = np.where(walks.leaf_level == level, walks.leaf_table_at, addresses[:, step])
        used = walks.leaf_level <= level
        yield from _check_tables(
            vmm, walks.region, level, pointers[:, step], at - walks.memory_at, used
        )


def _check_tables(
    vmm: VirtualMachineMonitor, region: Array, level: int, table: Array, offset: Array, used: Array
) -> Iterator[Violation]:
    """``table`` points to the tables of ``level``; they are remembered at machine ``offset``."""
    pmap = vmm.pmap
    ppns = (table & ENTRY_ADDRESS_MASK) >> PAGE_SHIFT
    known = ppns < pmap.pages
    known[known] = np.isin(pmap.state[ppns[known]], RESIDENT)
    actual = np.full(ppns.size, -1, np.int64)
    actual[known] = pmap.frame[ppns[known]]
    told = Told("I1", "cache of guest walks")
    for i in told.first(used & (offset >> PAGE_SHIFT != actual)):
        where = f"cached walk of gVA {int(region[i]) << 21:#x}, table of level {level}"
        found = f"PPN {ppns[i]:#x} in MPN {int(offset[i]) >> PAGE_SHIFT:#x}"
        expected = f"MPN {actual[i]:#x}" if known[i] else "no frame: it is not resident"
        yield Violation("I1", where, found, expected)
    yield from told.rest()
