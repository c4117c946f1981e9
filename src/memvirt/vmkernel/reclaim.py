# SPDX-License-Identifier: Apache-2.0
"""Who gives memory back, how much, by which mechanism.

How much follows from the host's state: in *soft* the balloons are to bring free memory back to the
border of clear; in *hard* and *low* memory is taken at once, up to the border of soft. Who follows
from the allocation policy (min-funding revocation), none below its reservation. Which pages: the
guest decides for the balloon, the choice of victims for all that is evicted. Where evicted pages go
is the order of ``Mem.Reclaim``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .allocation import AllocationPolicy, Amounts
from .events import EventLog
from .host_state import CLEAR_PERCENT, SOFT_PERCENT, HostStateMachine
from .managed import ManagedVm
from .mechanisms import ReclaimMechanism
from .samples import HostState
from .victims import VictimPolicy, choose_victims

_ROUNDS = 4  # times the rest of a need is asked of the VMs that can still give


class Reclaimer:
    """Reclaims memory of ``vms`` (the VMkernel's own list, which it changes) for a host.

    It is the ``ReclaimContext`` of its mechanisms. ``clock`` gives virtual time in nanoseconds.
    """

    def __init__(
        self,
        vms: Sequence[ManagedVm],
        state: HostStateMachine,
        events: EventLog,
        clock: Callable[[], int],
        *,
        allocation: AllocationPolicy,
        victims: VictimPolicy,
        mechanisms: dict[str, ReclaimMechanism],
    ) -> None:
        self.vms = vms
        self._state = state
        self._events = events
        self._clock = clock
        self._allocation = allocation
        self._victims = victims
        self._mechanisms = mechanisms
        self._places = [m.place for m in mechanisms.values() if m.place is not None]
        self.swap_target = 0  # pages that were to be evicted when it was last decided

    # What mechanisms may know and do (ReclaimContext) -------------------------------------------

    @property
    def host_state(self) -> HostState:
        return self._state.state

    def border(self, percent: float) -> int:
        """Pages that ``percent`` of minimum free memory are."""
        return self._state.border(percent)

    def shortage(self, free: int, percent: float) -> int:
        """Pages missing to ``percent`` of minimum free memory."""
        return max(self._state.border(percent) - free, 0)

    def revoke(self, vms: Sequence[ManagedVm], need: int) -> list[int]:
        """Pages to take from each of ``vms``, rounded so that no VM gives less than its part."""
        if not vms or need <= 0:
            return [0] * len(vms)
        taken = self._allocation.revoke(need, [vm.claim for vm in vms])
        return [int(pages) for pages in np.ceil(taken - 1e-6)]

    def record(self, vm: ManagedVm, mechanism: str, pages: int, reason: str) -> None:
        """Put a decision into the event log."""
        self._events.record(self._clock(), vm.name, mechanism, pages, reason)

    # ------------------------------------------------------------------------------------------

    def targets(self, total: float) -> Amounts:
        """Pages each VM is entitled to, of ``total`` for all."""
        return self._allocation.targets(total, [vm.claim for vm in self.vms])

    def adjust(self, free: int) -> None:
        """Let each mechanism set its targets."""
        for mechanism in self._mechanisms.values():
            mechanism.adjust(self, free)

    def take_pages(self, need: int, reason: str, spare: ManagedVm | None = None) -> int:
        """Take pages until ``need`` frames are free; returns how many became free.

        ``spare`` is a VM not to take from (the one the frames are for).
        """
        vms = [vm for vm in self.vms if vm is not spare]
        freed = 0
        self.swap_target = need
        for _ in range(_ROUNDS):
            if freed >= need or not vms:
                break
            parts = self.revoke(vms, need - freed)
            able: list[ManagedVm] = []
            for vm, pages in zip(vms, parts, strict=True):
                gained = self.take_from(vm, pages, reason) if pages > 0 else 0
                freed += gained
                if pages == 0 or gained * 2 >= pages:
                    able.append(vm)
            vms = able
        return freed

    def take_from(self, vm: ManagedVm, pages: int, reason: str) -> int:
        """Take about ``pages`` pages of one VM; returns how many frames it gave.

        Mechanisms are tried in the host's order. Those that keep pages stand together, where the
        first of them does: evicted pages pass from one to the next.
        """
        vm.swap_target = pages
        gained, evicted = 0, False
        for mechanism in self._mechanisms.values():
            if gained >= pages:
                break
            if mechanism.place is None:
                gained += mechanism.take(self, vm, pages - gained, reason)
            elif not evicted:
                evicted = True
                gained += self._evict(vm, pages - gained, reason)
        return gained

    def _evict(self, vm: ManagedVm, pages: int, reason: str) -> int:
        reclaim = vm.guest.reclaim
        before = vm.usage
        victims = choose_victims(vm.guest, pages, self._victims, vm.random)
        if reclaim is None or victims.size == 0:
            return 0
        eviction = reclaim.evict(victims, self._places)
        vm.refresh()
        # First what is kept, then what was dropped.
        for place in sorted(self._places, key=lambda place: place.drops):
            count = eviction.placed.get(place.name, 0)
            if count:
                why = f"{reason}; {place.note}" if place.note else reason
                self.record(vm, place.name, count, why)
        return round(before.consumed - vm.usage.consumed)

    def prepare_victims(self, free: int) -> None:
        """Under pressure, let the choice of victims look at the VMs that may have to give soon."""
        if self._state.state < HostState.SOFT:
            return
        expected = self.shortage(free, CLEAR_PERCENT) or self._state.border(SOFT_PERCENT)
        for vm, pages in zip(self.vms, self.revoke(self.vms, expected), strict=True):
            if pages > 0:
                self._victims.prepare(vm.guest, -(-pages // vm.guest.granule), vm.random)
