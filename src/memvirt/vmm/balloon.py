# SPDX-License-Identifier: Apache-2.0
"""Pages a guest's balloon driver gave up, as the VMM keeps them: unmapped and flagged.

The frame is free the moment a page is given up, and its content is gone: the guest said that it
does not need it. If the guest touches the page all the same, it gets a frame of zeroes like any
page never touched, and the flag goes (``frames.resolve_page``, ``monitor.bring_back``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memvirt.address import GuestPhysicalAddress, PpnArray
from memvirt.mmu.page_state import FLAG_BALLOONED, FLAG_SHADOWED

from .monitor import VirtualMachineMonitor

Verdicts = np.ndarray[Any, np.dtype[np.bool_]]


class BalloonedPages:
    """The VMM ``vmm`` as the balloon device sees it (``platform.balloon.BalloonMemory``).

    Called only while the VM's processor is stopped.
    """

    def __init__(self, vmm: VirtualMachineMonitor) -> None:
        self._vmm = vmm

    @property
    def pages(self) -> int:
        """Guest-physical pages of the VM."""
        return self._vmm.pmap.pages

    @property
    def ballooned(self) -> int:
        """Pages that are given up now."""
        return int(self._vmm.state.ballooned_pages)

    @property
    def touched(self) -> int:
        """Pages the guest touched after giving them up, without taking them back; ever."""
        return int(self._vmm.state.balloon_touched)

    def give_up(self, ppns: PpnArray) -> Verdicts:
        """Free whatever holds each of ``ppns`` (distinct, not ballooned); False where it cannot be.

        Raises IndexError, with nothing changed, for a PPN beyond the VM's memory.
        """
        vmm, pmap = self._vmm, self._vmm.pmap
        self._check(ppns)
        accepted: Verdicts = pmap.flags[ppns] & FLAG_BALLOONED == 0
        if not vmm.page_tables.remaps:
            accepted[:] = False
        pages = ppns[accepted]
        if pages.size == 0:
            return accepted
        vmm.contents.discard(pages)
        if (pmap.flags[pages] & FLAG_SHADOWED).any():
            vmm.page_tables.forget_guest_tables()  # a page table's content goes with its page
        pmap.flags[pages] |= FLAG_BALLOONED
        vmm.state.ballooned_pages += pages.size
        return accepted

    def take_back(self, ppns: PpnArray) -> Verdicts:
        """End the ballooning of each of ``ppns``; False where it was not ballooned (any more).

        The pages stay unmapped: the next access gets a frame of zeroes.
        Raises IndexError, with nothing changed, for a PPN beyond the VM's memory.
        """
        pmap = self._vmm.pmap
        self._check(ppns)
        taken: Verdicts = pmap.flags[ppns] & FLAG_BALLOONED != 0
        pmap.flags[ppns[taken]] &= 0xFF ^ FLAG_BALLOONED
        self._vmm.state.ballooned_pages -= int(np.count_nonzero(taken))
        return taken

    def _check(self, ppns: PpnArray) -> None:
        self._vmm.pmap.check_all(ppns)

    def read_physical(self, gpa: GuestPhysicalAddress, count: int) -> bytes:
        """See ``VirtualMachineMonitor.read_physical``."""
        return self._vmm.read_physical(gpa, count)

    def write_physical(self, gpa: GuestPhysicalAddress, data: bytes) -> None:
        """See ``VirtualMachineMonitor.write_physical``."""
        self._vmm.write_physical(gpa, data)
