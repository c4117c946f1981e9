# SPDX-License-Identifier: Apache-2.0
"""Who gives memory back, how much, by which mechanism.

How much follows from the host's state: in *soft* the balloons are to bring free memory back to the
border of clear; in *hard* and *low* compression and swap bring it to the border of soft at once.
Who follows from min-funding revocation: the VMs with the lowest shares per page, none below its
reservation. Which pages: the guest decides for the balloon, ``victims`` for swap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memvirt.vmm.eviction import Eviction

from .allocation import revoke, weights
from .events import EventLog, Mechanism
from .host_state import CLEAR_PERCENT, SOFT_PERCENT, HostStateMachine
from .managed import ManagedVm
from .options import MemoryOptions
from .statistics import HostState
from .victims import choose_victims, give_second_chance

_LIMIT_MARGIN = 0.1  # of a VM's limit: closer to it, its balloon takes what lies beyond
_DEFLATE_PERCENT = 150  # of minimum free memory: balloons deflate only above, or they would flap
_STEP = 0.01  # of a VM's memory: balloons deflate in steps not smaller than that
_ROUNDS = 4  # times the rest of a need is asked of the VMs that can still give


class Reclaimer:
    """Reclaims memory of ``vms`` (the VMkernel's own list, which it changes) for a host."""

    def __init__(
        self,
        vms: Sequence[ManagedVm],
        options: MemoryOptions,
        state: HostStateMachine,
        events: EventLog,
    ) -> None:
        self._vms = vms
        self._options = options
        self._state = state
        self._events = events
        self.swap_target = 0  # pages that were to be swapped when it was last decided

    def weights(self, vms: Sequence[ManagedVm]) -> Any:
        """Shares after the idle memory tax."""
        shares = [vm.settings.shares for vm in vms]
        return weights(shares, [vm.activity.estimate for vm in vms], self._options.idle_tax)

    def shortage(self, free: int, percent: float) -> int:
        """Pages missing to ``percent`` of minimum free memory."""
        return max(self._state.border(percent) - free, 0)

    def _revoke(self, vms: Sequence[ManagedVm], need: int) -> list[int]:
        """Pages to take from each of ``vms``, rounded so that no VM gives less than its part."""
        if not vms or need <= 0:
            return [0] * len(vms)
        taken = revoke(
            need,
            self.weights(vms),
            [vm.usage.consumed for vm in vms],
            [vm.settings.reservation for vm in vms],
        )
        return [int(pages) for pages in np.ceil(taken - 1e-6)]

    # Balloon -----------------------------------------------------------------------------------

    def set_balloons(self, now: int, free: int) -> None:
        """Set the targets of all balloons for the state the host is in."""
        state = self._state.state
        if state is HostState.SOFT:
            self._inflate(now, self.shortage(free, CLEAR_PERCENT))
        elif state < HostState.SOFT:
            self._deflate(now, free - self._state.border(_DEFLATE_PERCENT))
        for vm in self._vms:
            # A guest close to its limit had better choose itself what it can do without.
            beyond = _beyond_limit(vm)
            if vm.has_driver and vm.room < vm.settings.maximum * _LIMIT_MARGIN and beyond > 0:
                self._set_balloon(now, vm, max(vm.balloon_target, beyond), "close to its limit")

    def _inflate(self, now: int, need: int) -> None:
        drivers = [vm for vm in self._vms if vm.has_driver]
        for vm, pages in zip(drivers, self._revoke(drivers, need), strict=True):
            if pages > 0:
                reason = f"state soft: {need} pages wanted of VMs with a balloon driver"
                self._set_balloon(now, vm, vm.balloon_size + pages, reason)

    def _deflate(self, now: int, spare: int) -> None:
        """Let guests have pages back, a quarter of what is to spare at a time."""
        inflated = [
            vm for vm in self._vms if vm.has_driver and vm.balloon_target > _beyond_limit(vm)
        ]
        total = sum(vm.balloon_target - _beyond_limit(vm) for vm in inflated)
        give = min(total, spare // 4)
        if total == 0 or give <= 0:
            return
        for vm in inflated:
            floor = _beyond_limit(vm)
            part = -(-give * (vm.balloon_target - floor) // total)
            part = max(part, int(vm.settings.memory * _STEP))
            target = max(vm.balloon_target - part, floor)
            reason = f"state {self._state.state.name.lower()}: {spare} pages to spare"
            self._set_balloon(now, vm, target, reason)

    def _set_balloon(self, now: int, vm: ManagedVm, target: int, reason: str) -> None:
        target = min(target, vm.balloon_max)
        balloon = vm.guest.balloon
        change = target - vm.balloon_target
        # Only deflating may wait until it is worth it: memory is short when a balloon inflates.
        small = -change < vm.settings.memory * _STEP and target not in (0, _beyond_limit(vm))
        if balloon is None or change == 0 or (change < 0 and small):
            return
        vm.balloon_target = balloon.target = target
        self._events.record(now, vm.name, Mechanism.BALLOON, change, reason)

    # Compression and swap ----------------------------------------------------------------------

    def take_pages(self, now: int, need: int, reason: str, spare: ManagedVm | None = None) -> int:
        """Compress or swap until ``need`` frames are free; returns how many became free.

        ``spare`` is a VM not to take from (the one the frames are for).
        """
        vms = [vm for vm in self._vms if vm is not spare]
        freed = 0
        self.swap_target = need
        for _ in range(_ROUNDS):
            if freed >= need or not vms:
                break
            parts = self._revoke(vms, need - freed)
            able: list[ManagedVm] = []
            for vm, pages in zip(vms, parts, strict=True):
                gained = self.take_from(now, vm, pages, reason) if pages > 0 else 0
                freed += gained
                if pages == 0 or gained * 2 >= pages:
                    able.append(vm)
            vms = able
        return freed

    def take_from(self, now: int, vm: ManagedVm, pages: int, reason: str) -> int:
        """Compress or swap about ``pages`` pages of one VM; returns how many frames it gave."""
        vm.swap_target = pages
        before = vm.usage
        victims = choose_victims(vm.guest, pages, self._options.swap_victims, vm.random)
        if victims.size == 0:
            return 0
        eviction = vm.guest.unmap(victims)
        vm.refresh()
        self._record(now, vm, eviction, reason)
        return round(before.consumed - vm.usage.consumed)

    def _record(self, now: int, vm: ManagedVm, eviction: Eviction, reason: str) -> None:
        if eviction.put_into("compress"):
            self._events.record(
                now, vm.name, Mechanism.COMPRESS, eviction.put_into("compress"), reason
            )
        written = eviction.put_into("swap")
        if written:
            self._events.record(now, vm.name, Mechanism.SWAP, written, reason)
        if eviction.discarded:
            self._events.record(
                now, vm.name, Mechanism.DISCARD, eviction.discarded, f"{reason}; zeroes"
            )

    def prepare_victims(self, free: int) -> None:
        """Under pressure, watch pages that may have to go soon."""
        if self._options.swap_victims.value != "idle" or self._state.state < HostState.SOFT:
            return
        expected = self.shortage(free, CLEAR_PERCENT) or self._state.border(SOFT_PERCENT)
        for vm, pages in zip(self._vms, self._revoke(self._vms, expected), strict=True):
            if pages > 0:
                give_second_chance(vm.guest, pages, vm.random)


def _beyond_limit(vm: ManagedVm) -> int:
    """Pages of a VM's memory that its limit keeps it from having."""
    return vm.settings.memory - vm.settings.maximum
