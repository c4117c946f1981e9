# SPDX-License-Identifier: Apache-2.0
"""Moving the pages of a large page into one run of frames."""

from __future__ import annotations

import numpy as np

from memvirt.address import MpnArray, PhysicalPageNumber, PpnArray
from memvirt.machine.memory import FrameKind, MachineMemoryExhausted

from .content import PageContents
from .paging.interface import Paging
from .pmap import LARGE_PAGES, PageState


def back_by_large_page(contents: PageContents, page_tables: Paging, ppns: PpnArray) -> bool:
    """Move the pages ``ppns``, an aligned run of 512, to an aligned run of frames.

    Returns False, with nothing changed, if not all are private or no run is free. The caller notes
    in the pmap that one entry can map them now.
    """
    machine, pmap = contents.machine, contents.pmap
    if (pmap.state[ppns] != PageState.PRIVATE).any():
        return False
    try:
        first = machine.allocate_run(9, kind=FrameKind.GUEST, owner=contents.vm_id)
    except MachineMemoryExhausted:
        return False
    contents.invalidate(ppns)
    old = pmap.mpns_of(ppns)
    run_mpns = MpnArray(np.arange(first, first + LARGE_PAGES, dtype=np.uint32))
    contents.replace_frames(ppns, run_mpns)
    machine.release(old)
    table = page_tables.release_table_below(PhysicalPageNumber(int(ppns[0])))
    if table is not None:
        machine.release(table)
    return True
