# SPDX-License-Identifier: Apache-2.0
"""Machine memory as the VMkernel sees it: how much there is, how much is free."""

from __future__ import annotations

from typing import Any

from memvirt.machine.memory import FrameKind, MachineMemory


class HostFrames:
    """The frames of ``machine`` (``MachineFrames`` and ``FramePool`` of the VMkernel)."""

    def __init__(self, machine: MachineMemory) -> None:
        self._machine = machine

    @property
    def frames(self) -> int:
        return self._machine.frames

    @property
    def free_frames(self) -> int:
        return self._machine.free_frames

    @property
    def pool(self) -> HostFrames:
        return self

    def withdraw(self, count: int) -> Any:
        """MPNs that are out of use until ``put_back``. Raises MachineMemoryExhausted."""
        return self._machine.allocate(count, kind=FrameKind.VMKERNEL)

    def put_back(self, withdrawn: Any) -> None:
        self._machine.release(withdrawn)
