# SPDX-License-Identifier: Apache-2.0
"""Machine memory of simulated hosts: a count of frames, and who refers to the shared ones."""

from __future__ import annotations

import numpy as np

from memvirt.address import MachinePageNumber, MpnArray


class NoFrames(Exception):
    """The simulated machine has fewer frames free than are wanted."""


class SimulatedMachine:
    """Machine memory of ``frames`` frames, as a number. Raises NoFrames.

    Of shared frames, which have a number each (as MPNs, from 0), it has the references and salts.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.used = 0
        self.references = np.zeros(0, np.int64)
        self.salts = np.zeros(0, np.int64)
        self.shared = 0  # shared frames ever made
        self.reference_changes = 0

    @property
    def free_frames(self) -> int:
        """Those not taken."""
        return self.frames - self.used

    @property
    def pool(self) -> _Pool:
        """By which memory is taken out of use, as a ``FramePool``."""
        return _Pool(self)

    def take(self, count: int) -> None:
        """Take ``count`` frames. Raises NoFrames, with nothing taken, if fewer are free."""
        if count > self.frames - self.used:
            raise NoFrames(f"{count} frames wanted, {self.free_frames} free")
        self.used += count

    def put_back(self, count: int) -> None:
        """Free ``count`` frames."""
        self.used -= count

    def new_shared(self, salt: int) -> MachinePageNumber:
        """A shared frame with one reference; its number."""
        mpn = self.shared
        if mpn == self.references.size:
            more = np.zeros(max(mpn, 1024), np.int64)
            self.references = np.concatenate((self.references, more))
            self.salts = np.concatenate((self.salts, more))
        self.references[mpn], self.salts[mpn] = 1, salt
        self.shared += 1
        self.reference_changes += 1
        return MachinePageNumber(mpn)

    def add_references(self, mpns: MpnArray) -> None:
        """One more for each time a shared frame is listed."""
        np.add.at(self.references, mpns, 1)
        self.reference_changes += 1


class _Pool:
    """Frames of a simulated machine out of use."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine

    def withdraw(self, count: int) -> int:
        self._machine.take(count)
        return count

    def put_back(self, withdrawn: object) -> None:
        assert isinstance(withdrawn, int)
        self._machine.put_back(withdrawn)
