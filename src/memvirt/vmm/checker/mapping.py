# SPDX-License-Identifier: Apache-2.0
"""What holds for every last-level entry, of a shadow or a nested table (I1, I2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from memvirt.mmu.page_state import FLAG_TRACED
from memvirt.vmm.pmap import RESIDENT, PageState

from .pages import state_name
from .violation import Array, Told, Violation

if TYPE_CHECKING:
    from memvirt.vmm.monitor import VirtualMachineMonitor


def check_mappings(
    vmm: VirtualMachineMonitor,
    ppns: Array,
    mpns: Array,
    writable: Array,
    where: Callable[[int], str],
) -> Iterator[Violation]:
    """Entry i maps PPN ``ppns[i]`` to MPN ``mpns[i]``; ``where(i)`` says where it lies."""
    pmap = vmm.pmap
    exist = (ppns >= 0) & (ppns < pmap.pages)
    state = np.full(ppns.size, -1, np.int64)
    frame = np.full(ppns.size, -1, np.int64)
    flags = np.zeros(ppns.size, np.uint8)
    state[exist] = pmap.state[ppns[exist]]
    frame[exist] = pmap.frame[ppns[exist]]
    flags[exist] = pmap.flags[ppns[exist]]
    resident = np.isin(state, list(RESIDENT))

    told = Told("I1", "mappings of pages without a frame")
    for i in told.first(~resident):
        found = f"a mapping of PPN {ppns[i]:#x} to MPN {mpns[i]:#x}"
        expected = f"none: it is {state_name(vmm, int(ppns[i]))}"
        yield Violation("I1", where(i), found, expected)
    yield from told.rest()
    told = Told("I1", "mappings to other frames than the pmap's")
    for i in told.first(resident & (frame != mpns)):
        expected = f"MPN {frame[i]:#x} (PPN {ppns[i]:#x})"
        yield Violation("I1", where(i), f"MPN {mpns[i]:#x}", expected)
    yield from told.rest()
    told = Told("I2", "writable mappings of pages that are not private")
    for i in told.first(writable & exist & (state != PageState.PRIVATE)):
        expected = f"read-only: it is {state_name(vmm, int(ppns[i]))}"
        yield Violation("I2", where(i), f"writable PPN {ppns[i]:#x}", expected)
    yield from told.rest()
    told = Told("I1", "writable mappings of traced pages")
    for i in told.first(writable & (flags & FLAG_TRACED != 0)):
        yield Violation("I1", where(i), f"writable PPN {ppns[i]:#x}", "read-only: it is traced")
    yield from told.rest()
