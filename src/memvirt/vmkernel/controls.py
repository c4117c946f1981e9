# SPDX-License-Identifier: Apache-2.0
"""What somebody may change while a host runs: each change is an event with its reason.

Called at a quiescent point; the next ``VmKernel.balance`` acts upon it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .admission import Admission, VmSettings
from .events import EventLog, Mechanism
from .grants import Grants
from .host_state import CLEAR_PERCENT, HostStateMachine
from .managed import Condition, ManagedVm
from .protocols import MachineFrames


class Controls:
    """Changes to VMs of a host. ``changed`` is told that targets are due."""

    def __init__(
        self,
        machine: MachineFrames,
        admission: Admission,
        state: HostStateMachine,
        grants: Grants,
        events: EventLog,
        clock: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:
        self._machine = machine
        self._admission = admission
        self._state = state
        self._grants = grants
        self._events = events
        self._clock = clock
        self._changed = changed

    def _record(self, vm: ManagedVm, mechanism: str, pages: int, reason: str) -> None:
        self._events.record(self._clock(), vm.name, mechanism, pages, reason)

    def change(
        self,
        vm: ManagedVm,
        *,
        shares: int | None = None,
        reservation: int | None = None,
        limit: int | None = None,
        reason: str,
    ) -> None:
        """Change a VM's shares, reservation or limit (in pages; a limit of its memory is none).

        Raises AdmissionError, with nothing changed, if the reservation cannot be had, ValueError
        for amounts that cannot be.
        """
        old = vm.settings
        new = replace(
            old,
            shares=old.shares if shares is None else shares,
            reservation=old.reservation if reservation is None else reservation,
            limit=old.limit if limit is None else limit,
        )
        new.check()
        vm.swap_reserved = self._admission.change(old, new, vm.swap_reserved)
        vm.settings = new
        vm.over_limit = new.maximum < old.maximum or vm.over_limit
        self._changed()
        self._record(vm, Mechanism.SETTINGS, 0, f"{terms(new)}: {reason}")

    def set_balloon(self, vm: ManagedVm, pages: int | None, reason: str) -> None:
        """Give a VM's balloon a target of ``pages``; None leaves it to policy again.

        Raises ValueError if the VM has no balloon, or not so large a one.
        """
        balloon = vm.guest.balloon
        if balloon is None:
            raise ValueError(f"VM {vm.name} has no balloon")
        if pages is not None and not 0 <= pages <= vm.balloon_max:
            raise ValueError(
                f"VM {vm.name}: a balloon target of {pages} pages: it should be 0 to "
                f"{vm.balloon_max} (Mem.CtlMaxPercent)"
            )
        vm.balloon_set = pages
        if pages is None:
            self._record(vm, Mechanism.SETTINGS, 0, f"balloon left to policy: {reason}")
            return
        change = pages - vm.balloon_target
        vm.balloon_target = balloon.target = pages
        self._record(vm, Mechanism.BALLOON, change, reason)

    def hold(self, vm: ManagedVm, reason: str) -> None:
        """Keep a VM from running until ``release``."""
        vm.held = True
        self._grants.stop(vm, Condition.PAUSED, reason)

    def release(self, vm: ManagedVm) -> None:
        """Let a VM that was held go on."""
        vm.held = False
        self.go_on(vm)

    def go_on(self, vm: ManagedVm) -> None:
        """What a VM may do now that a reason to stand still is gone, or has come."""
        if vm.held:
            return
        if vm.throttled:
            self._grants.stop(vm, Condition.THROTTLED, vm.throttled)
        else:
            self._grants.resume(vm)

    def restore(self, vm: ManagedVm, pages: int, reason: str) -> int:
        """Bring up to ``pages`` evicted pages of a VM back before its guest asks for them.

        As many as machine memory has above the border of clear, and the VM's limit leaves. Returns
        how many came back.
        """
        reclaim = vm.guest.reclaim
        if reclaim is None:
            return 0
        vm.refresh()
        spare = self._machine.free_frames - self._state.border(CLEAR_PERCENT)
        restored = reclaim.restore(max(min(pages, spare, vm.room), 0))
        if restored:
            vm.refresh()
            self._record(vm, Mechanism.RESTORE, restored, reason)
        return restored


def terms(settings: VmSettings) -> str:
    """What a VM is granted, for the event log."""
    return (
        f"{settings.shares} shares, reservation {settings.reservation}, "
        f"limit {settings.maximum} pages"
    )
