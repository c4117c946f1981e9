# SPDX-License-Identifier: Apache-2.0
"""A VM's reserve of zeroed frames, and the frames it gives up while it runs.

Compiled code takes frames from the reserve only (``frames.take_frame``). A VM on its own refills
it from the host's free list. A *managed* VM gets frames from the VMkernel, between quanta, and
what it gives up while it runs is kept until then too: so VMs on different threads touch nothing
in common, and whatever order they run in, the outcome is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memvirt.address import MachinePageNumber, MpnArray, PhysicalPageNumber
from memvirt.machine.memory import FrameKind, MachineMemory
from memvirt.mmu.host_ranges import host_address
from memvirt.state_record import record_word

RESERVE_FRAMES = 256  # frames moved from the host to the reserve at a time
RESERVE_CAPACITY = 1024


class FramesWanted(Exception):
    """A managed VM has used up the frames it was granted: it goes on when it has more."""


class FrameReserve:
    """The reserve of VM ``vm_id``, whose VMM's state is ``record`` (``record.new_record``)."""

    def __init__(self, machine: MachineMemory, vm_id: int, record: Any) -> None:
        self.machine = machine
        self.managed = False
        self._vm_id = vm_id
        self._stack = MpnArray(np.zeros(RESERVE_CAPACITY, np.uint32))
        self._given_up: list[MpnArray] = []
        self._count = record_word(record, "reserve_count")
        record[0].reserve_at = host_address(self._stack, f"reserve of VM {vm_id}")

    @property
    def count(self) -> int:
        return int(self._count[0])

    def grant(self, frames: int) -> int:
        """Add up to ``frames`` frames, as many as fit; returns how many.

        Raises MachineMemoryExhausted, with the reserve unchanged, if the host has fewer.
        """
        have = self.count
        frames = min(frames, RESERVE_CAPACITY - have)
        if frames > 0:
            taken = self.machine.allocate(frames, kind=FrameKind.RESERVE, owner=self._vm_id)
            self._stack[have : have + frames] = taken[::-1]
            self._count[0] = have + frames
        return max(frames, 0)

    def give_back(self, keep: int) -> int:
        """Return all but ``keep`` frames to the host; returns how many."""
        surplus = self.count - keep
        if surplus <= 0:
            return 0
        self._count[0] = keep
        self.machine.release(self._stack[keep : keep + surplus])
        return surplus

    def refill(self, minimum: int = 16) -> None:
        """Bring the reserve to RESERVE_FRAMES; to less, but ``minimum``, when memory is short.

        No VM takes more than an eighth of what is free, so that reserves do not starve others.
        Raises FramesWanted if the VM is managed, MachineMemoryExhausted, with the reserve
        unchanged, if ``minimum`` cannot be had.
        """
        if self.managed:
            raise FramesWanted
        fair = max(minimum - self.count, self.machine.free_frames // 8)
        self.grant(min(RESERVE_FRAMES - self.count, fair))

    def take(self, ppn: PhysicalPageNumber) -> MachinePageNumber:
        """A zeroed frame for ``ppn``. Raises FramesWanted or MachineMemoryExhausted."""
        if not self.managed:
            mpns = self.machine.allocate(kind=FrameKind.GUEST, owner=self._vm_id, detail=ppn)
            return MachinePageNumber(int(mpns[0]))
        if self.count == 0:
            raise FramesWanted
        self._count[0] -= 1
        mpn = MachinePageNumber(int(self._stack[self.count]))
        self.machine.kind[mpn] = FrameKind.GUEST
        self.machine.guest_ppn[mpn] = ppn
        return mpn

    def put_back(self, mpn: MachinePageNumber) -> None:
        """Return a frame that ``take`` gave and that is still zeroed."""
        if not self.managed:
            self.machine.release(mpn)
            return
        self.machine.kind[mpn] = FrameKind.RESERVE
        self._stack[self.count] = mpn
        self._count[0] += 1

    def give_up(self, mpns: MpnArray | MachinePageNumber) -> None:
        """Release frames, at once or, if the VM is managed, when it next settles."""
        if self.managed:
            self._given_up.append(MpnArray(np.atleast_1d(np.asarray(mpns, np.uint32))))
        else:
            self.machine.release(mpns)

    def settle(self) -> int:
        """Release what the VM has given up while it ran; returns how many references."""
        if not self._given_up:
            return 0
        frames = MpnArray(np.concatenate(self._given_up))
        self._given_up = []
        self.machine.release(frames)
        return int(frames.size)
