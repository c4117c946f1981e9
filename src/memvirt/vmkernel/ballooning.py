# SPDX-License-Identifier: Apache-2.0
"""The balloon: the guest itself chooses what it can do without.

In state *soft* the balloons are to bring free memory back to the border of clear; better states
let them deflate. In *hard* and *low* they keep what they have: a guest that has to act would be too
slow. Only where nothing else can be taken from a VM (another kernel manages it and has no swap) its
balloon goes on: slow is better than not at all.
"""

from __future__ import annotations

from .events import Mechanism
from .host_state import CLEAR_PERCENT
from .managed import ManagedVm
from .mechanisms import ReclaimContext, ReclaimMechanism
from .samples import HostState

_LIMIT_MARGIN = 0.1  # of a VM's limit: closer to it, its balloon takes what lies beyond
DEFLATE_PERCENT = 150  # of minimum free memory: balloons deflate only above, or they would flap
_STEP = 0.01  # of a VM's memory: balloons deflate in steps not smaller than that


class BalloonMechanism(ReclaimMechanism):
    """Targets for the balloons of all VMs whose guests have a driver."""

    def adjust(self, host: ReclaimContext, free: int) -> None:
        """Set the targets of all balloons for the state the host is in."""
        if host.host_state is HostState.SOFT:
            self._inflate(host, host.shortage(free, CLEAR_PERCENT), _drivers(host))
        elif host.host_state > HostState.SOFT:
            only = [vm for vm in _drivers(host) if vm.guest.reclaim is None]
            self._inflate(host, host.shortage(free, CLEAR_PERCENT), only)
        elif host.host_state < HostState.SOFT:
            self._deflate(host, free - host.border(DEFLATE_PERCENT))
        for vm in _drivers(host):
            # A guest close to its limit had better choose itself what it can do without.
            beyond = _beyond_limit(vm)
            if vm.room < vm.settings.maximum * _LIMIT_MARGIN and beyond > 0:
                self._set(host, vm, max(vm.balloon_target, beyond), "close to its limit")

    def _inflate(self, host: ReclaimContext, need: int, drivers: list[ManagedVm]) -> None:
        for vm, pages in zip(drivers, host.revoke(drivers, need), strict=True):
            if pages > 0:
                state = host.host_state.name.lower()
                reason = f"state {state}: {need} pages wanted of VMs with a balloon driver"
                if vm.balloon_size + pages < vm.balloon_target:
                    reason += ", fewer than were asked for before"
                self._set(host, vm, vm.balloon_size + pages, reason)

    def _deflate(self, host: ReclaimContext, spare: int) -> None:
        """Let guests have pages back, a quarter of what is to spare at a time."""
        inflated = [vm for vm in _drivers(host) if vm.balloon_target > _beyond_limit(vm)]
        total = sum(vm.balloon_target - _beyond_limit(vm) for vm in inflated)
        give = min(total, spare // 4)
        if total == 0 or give <= 0:
            return
        for vm in inflated:
            floor = _beyond_limit(vm)
            part = -(-give * (vm.balloon_target - floor) // total)
            part = max(part, int(vm.settings.memory * _STEP))
            target = max(vm.balloon_target - part, floor)
            reason = f"state {host.host_state.name.lower()}: {spare} pages to spare"
            self._set(host, vm, target, reason)

    def _set(self, host: ReclaimContext, vm: ManagedVm, target: int, reason: str) -> None:
        target = min(target, vm.balloon_max)
        balloon = vm.guest.balloon
        change = target - vm.balloon_target
        # Only deflating may wait until it is worth it: memory is short when a balloon inflates.
        small = -change < vm.settings.memory * _STEP and target not in (0, _beyond_limit(vm))
        if balloon is None or change == 0 or (change < 0 and small):
            return
        vm.balloon_target = balloon.target = target
        host.record(vm, Mechanism.BALLOON, change, reason)


def _drivers(host: ReclaimContext) -> list[ManagedVm]:
    """VMs whose balloons policy may use: not those whose target somebody has set."""
    return [vm for vm in host.vms if vm.has_driver and vm.balloon_set is None]


def _beyond_limit(vm: ManagedVm) -> int:
    """Pages of a VM's memory that its limit keeps it from having."""
    return vm.settings.memory - vm.settings.maximum
