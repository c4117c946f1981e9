# SPDX-License-Identifier: Apache-2.0
"""Frames for the next quantum: how many each VM gets, and what happens to one that gets none.

A VM that another kernel gives its memory to has no grants: it only runs, or it is *blocked* while
the host is low on memory and the VM above its target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .events import EventLog, Mechanism
from .host_state import HostStateMachine
from .managed import Condition, ManagedVm
from .protocols import FrameGrants, MachineFrames
from .reclaim import Reclaimer
from .samples import HostState

_STOPPED_BY = {Condition.BLOCKED: Mechanism.BLOCK, Condition.THROTTLED: Mechanism.THROTTLE}


class Grants:
    """Grants frames of ``machine`` to ``vms`` (the VMkernel's own list, which it changes)."""

    def __init__(
        self,
        machine: MachineFrames,
        vms: Sequence[ManagedVm],
        state: HostStateMachine,
        reclaimer: Reclaimer,
        events: EventLog,
        clock: Callable[[], int],
    ) -> None:
        self._machine = machine
        self._vms = vms
        self._state = state
        self._reclaimer = reclaimer
        self._events = events
        self._clock = clock

    @property
    def lent(self) -> int:
        """Frames in the reserves of VMs beyond what each has to keep."""
        lent = 0
        for vm in self._vms:
            spare = vm.reserve - vm.minimum_grant
            if spare > 0:
                lent += spare
        return lent

    def settle(self) -> None:
        """Note what VMs used of their grants while they ran."""
        for vm in self._vms:
            reserve = vm.reserve
            vm.used += max(vm.granted - reserve, 0)
            vm.granted = reserve

    def take_back(self) -> None:
        """Take all frames back that VMs do not need at once."""
        for vm in self._vms:
            if vm.guest.frames is not None:
                vm.granted -= vm.guest.frames.give_back(vm.minimum_grant)

    def grant_all(self) -> None:
        """Give each VM frames for its next quantum: twice what it used, within what is fair."""
        shares, hungry = [], 0
        for vm in self._vms:
            share = min(max(2 * vm.used, vm.minimum_grant), vm.maximum_grant)
            shares.append(share)
            if vm.used or vm.waiting:
                hungry += 1
            frames = vm.guest.frames
            if frames is not None and frames.reserve > share:
                frames.give_back(share)
        hungry = hungry or 1
        for vm, share in zip(self._vms, shares, strict=True):
            fair = self._machine.free_frames // (2 * hungry)
            self.grant(vm, min(share - vm.reserve, max(fair, vm.minimum_grant)))
            vm.granted = vm.reserve

    def grant(self, vm: ManagedVm, wanted: int) -> None:
        """Let ``vm`` go on, with ``wanted`` more frames if that can be."""
        if vm.held or vm.throttled or (vm.condition is Condition.PAUSED and not vm.waiting):
            return  # for a reason that frames do not cure
        low = self._state.state is HostState.LOW
        frames = vm.guest.frames
        starving = frames is None or frames.reserve < vm.needed_to_run
        if low and vm.usage.consumed > vm.target and starving:
            self._starve(vm, Condition.BLOCKED, "host low on memory, VM above its target")
        elif frames is None:
            self.resume(vm)
        else:
            self._grant_frames(vm, frames, wanted)

    def _grant_frames(self, vm: ManagedVm, frames: FrameGrants, wanted: int) -> None:
        if vm.settings.limit is not None:
            wanted = min(wanted, self._room_under_limit(vm, frames, wanted))
        short = wanted - self._machine.free_frames
        if short > 0 and frames.reserve < vm.needed_to_run:
            self._reclaimer.take_pages(short, f"{wanted} pages for {vm.name}")
        wanted = min(wanted, self._machine.free_frames)
        if wanted > 0:
            frames.grant(wanted)
        if frames.reserve >= vm.needed_to_run:
            self.resume(vm)
        else:
            self._starve(vm, Condition.WAITING, "no frame can be reclaimed")

    def _room_under_limit(self, vm: ManagedVm, frames: FrameGrants, wanted: int) -> int:
        """Frames a VM may still get under its limit; at it, it has to give up others first."""
        room = vm.room - frames.reserve
        if room < vm.minimum_grant and frames.reserve < vm.needed_to_run:
            need = max(wanted, vm.minimum_grant) - room
            self._reclaimer.take_from(vm, need, "at its limit")
            room = vm.room - frames.reserve
        return max(room, 0)

    def _starve(self, vm: ManagedVm, condition: Condition, reason: str) -> None:
        """The VM gets no frames now: paused if a swap file that fails is the cause."""
        troubles = [other.guest.trouble for other in self._vms if other.guest.trouble]
        if troubles:
            condition, reason = Condition.PAUSED, troubles[0]
        self.stop(vm, condition, reason)

    def stop(self, vm: ManagedVm, condition: Condition, reason: str) -> None:
        """The VM cannot go on."""
        if (vm.condition, vm.reason) == (condition, reason):
            return
        vm.condition, vm.reason = condition, reason
        mechanism = _STOPPED_BY.get(condition, Mechanism.PAUSE)
        self._events.record(self._clock(), vm.name, mechanism, 0, reason)

    def resume(self, vm: ManagedVm) -> None:
        """The VM can go on."""
        if vm.condition is not Condition.RUNNING:
            reason = f"was {vm.condition}"
            self._events.record(self._clock(), vm.name, Mechanism.RESUME, 0, reason)
            vm.condition, vm.reason = Condition.RUNNING, ""
