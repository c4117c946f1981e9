# SPDX-License-Identifier: Apache-2.0
"""When each page of a host was in use last, observed only while somebody looks at it.

As the VMkernel samples a working set, but of every page: translations are taken back, and the next
access to a page, a hidden fault, is noticed. The guests pay that fault for each page that they
touch between two looks; the VMkernel's own samples are not disturbed. The 512 pages of a large page
count as touched together.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from memvirt.address import PpnArray
from memvirt.mmu.page_state import FLAG_OBSERVED
from memvirt.observe.page_classes import HostPages
from memvirt.vm.virtual_machine import VirtualMachine

from .wire import Classes, Parts

RECENT, EARLIER = 8, 64  # rounds


class UseClass(IntEnum):
    """When a page was touched last, as far as is known. Larger is later."""

    NOT_RESIDENT = 0
    NOT_TOUCHED = 1  # since observation began
    LONG_AGO = 2  # more than EARLIER rounds ago
    EARLIER = 3  # within EARLIER rounds
    RECENT = 4  # within RECENT rounds
    NOW = 5  # since the frame before


class PageActivity:
    """Observes every page of some VMs from the first ``look`` on."""

    def __init__(self) -> None:
        self._touched: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}

    def look(self, vms: Sequence[VirtualMachine], pages: HostPages, rounds: int) -> Parts:
        """``use:ID`` by PPN and ``use:machine`` by MPN, of UseClass; then observe on.

        ``rounds`` is the host's count, ``pages`` its pages now. Every processor is stopped. The
        caller calls again after each frame, or drops this object: pages that are never looked at
        again cost one hidden fault each.
        """
        parts: Parts = {}
        machine = np.zeros(pages.frames.size, np.uint8)
        frames = {one.vm_id: one.frames for one in pages.vms}
        for vm in vms:
            if vm.outcome is not None:
                continue
            classes = self._look_at(vm, rounds)
            resident = frames[vm.vm_id] >= 0
            classes[~resident] = UseClass.NOT_RESIDENT
            np.maximum.at(machine, frames[vm.vm_id][resident], classes[resident])
            parts[f"use:{vm.vm_id}"] = classes
        return parts | {"use:machine": machine}

    def _look_at(self, vm: VirtualMachine, rounds: int) -> Classes:
        flags = vm.vmm.pmap.flags
        noticed = np.flatnonzero(flags & FLAG_OBSERVED == 0)
        touched = self._touched.get(vm.vm_id)
        if touched is None:
            touched = self._touched[vm.vm_id] = np.full(flags.size, -1, np.int64)
        else:
            touched[noticed] = rounds
        vm.vmm.notice_access(PpnArray(noticed), FLAG_OBSERVED)
        age = rounds - touched
        classes = np.full(flags.size, UseClass.LONG_AGO, np.uint8)
        classes[age <= EARLIER] = UseClass.EARLIER
        classes[age <= RECENT] = UseClass.RECENT
        classes[touched == rounds] = UseClass.NOW
        classes[touched < 0] = UseClass.NOT_TOUCHED
        return classes
