# SPDX-License-Identifier: Apache-2.0
"""Remapping for its own sake: pages moved, unmapped and shared under a running guest."""

from __future__ import annotations

import numpy as np

from memvirt.address import PpnArray
from memvirt.host.vmm_memory import VmmMemory
from memvirt.scenario.keys import RemapOptions
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmkernel.sharing import PageSharing

_SCANNED = 512  # pages looked at for sharing each time


class Remapper:
    """Moves, unmaps and shares pages of one VM at intervals of virtual time.

    The choice depends on the options and the VM's number only, so a scenario can be repeated.
    """

    def __init__(self, vm: VirtualMachine, options: RemapOptions, number: int) -> None:
        self._vm = vm
        self._options = options
        self._random = np.random.default_rng((options.seed, number))
        self._guest = VmmMemory(vm.vmm, notices_writes=False)  # that is for the VMkernel's scan
        self._sharing = PageSharing(self._random)
        self._sharing.add(self._guest)
        self._next_ns = int(options.every_ms * 1e6)
        self.rounds = 0

    def __call__(self) -> bool:
        """Called between quanta; True if pages were remapped."""
        options = self._options
        if self._vm.virtual_ns < self._next_ns or not (
            options.move or options.unmap or options.share
        ):
            return False
        self._next_ns = self._vm.virtual_ns + int(options.every_ms * 1e6)
        vmm = self._vm.vmm
        pages = PpnArray(self._random.permutation(vmm.pmap.pages))
        moved = int(pages.size * options.move)
        # Moving takes new frames before it gives up the old: never more than are free.
        vmm.move(pages[: min(moved, vmm.machine.free_frames // 4)])
        vmm.unmap(pages[moved : moved + int(pages.size * options.unmap)])
        if options.share:
            some = PpnArray(self._random.permutation(vmm.pmap.pages)[:_SCANNED])
            self._sharing.scan_pages(self._guest, some)
        self.rounds += 1
        return True
