# SPDX-License-Identifier: Apache-2.0
"""What a reclaim mechanism is: one way in which memory comes back from VMs.

A mechanism is a subclass of ``ReclaimMechanism`` that overrides what it needs. There are three:

- it *asks*: ``adjust`` is called at each quiescent point at which time has passed, and sets targets
  that the guest follows by and by (the balloon);
- it *takes*: ``take`` frees frames of one VM at once;
- it *keeps*: it names a ``place`` where the content of evicted pages may go (compression, swap).

Which mechanisms a host uses, and in which order it takes and tries places, is ``Mem.Reclaim``.
``policies`` registers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .managed import ManagedVm
from .protocols import Place
from .samples import HostState


class ReclaimContext(Protocol):
    """What a mechanism may know of the host, and do on it."""

    @property
    def vms(self) -> Sequence[ManagedVm]:
        """All VMs that are on."""
        ...

    @property
    def host_state(self) -> HostState: ...

    def border(self, percent: float) -> int:
        """Pages that ``percent`` of minimum free memory are."""
        ...

    def shortage(self, free: int, percent: float) -> int:
        """Pages missing to ``percent`` of minimum free memory when ``free`` are free."""
        ...

    def revoke(self, vms: Sequence[ManagedVm], need: int) -> list[int]:
        """Pages to take from each of ``vms``, as the host's allocation policy has it."""
        ...

    def record(self, vm: ManagedVm, mechanism: str, pages: int, reason: str) -> None:
        """Put a decision into the event log."""
        ...


class ReclaimMechanism:
    """One way to reclaim memory; ``place`` is where content goes, if it keeps any."""

    place: Place | None = None

    def adjust(self, host: ReclaimContext, free: int) -> None:
        """Set targets, with ``free`` pages free. Called in every host state."""

    def take(self, host: ReclaimContext, vm: ManagedVm, pages: int, reason: str) -> int:
        """Free about ``pages`` frames of ``vm`` at once; returns how many.

        Called when memory must come back now: in states hard and low, for a VM at its limit, and
        to make room. Obligation: ``vm.refresh()`` after a change, and an event for it.
        """
        return 0


class KeepIn(ReclaimMechanism):
    """Evicted pages may go to ``place``. The VM has the store of that name."""

    def __init__(self, place: Place) -> None:
        self.place = place
