# SPDX-License-Identifier: Apache-2.0
"""When large pages are made, and when they are broken so that their pages can be shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .events import EventLog, Mechanism
from .host_state import HostStateMachine
from .managed import ManagedVm
from .protocols import MachineFrames
from .samples import HostState

_BACKOFF_NS = 500_000_000
_A_ROUND = 4  # large pages made or broken at one quiescent point


class LargePageManager:
    """Large pages of ``vms`` on ``machine``, by the host's state."""

    def __init__(
        self,
        machine: MachineFrames,
        vms: Sequence[ManagedVm],
        state: HostStateMachine,
        high_percent: float,
        events: EventLog,
        clock: Callable[[], int],
    ) -> None:
        self._machine = machine
        self._vms = vms
        self._state = state
        self._high_percent = high_percent
        self._events = events
        self._clock = clock
        self._due_ns = 0

    def manage(self) -> None:
        """Make large pages in state high; below, break them."""
        high = self._state.state is HostState.HIGH
        if high and self._clock() < self._due_ns:
            return
        left = _A_ROUND
        for vm in self._vms:
            large = vm.guest.large_pages
            if large is None:
                continue
            if not high:
                changed, why = large.break_large(left), "broken: memory is short"
            elif self._machine.free_frames > self._spare(2 * large.pages_each):
                # Only a VM that has had new frames can have a new run of private pages.
                changed = large.make_large(left) if vm.used else 0
                why = "made: memory is plenty"
                if changed < 0:  # machine memory is in pieces: looking for runs costs a scan of it
                    self._due_ns = self._clock() + _BACKOFF_NS
                    break
            else:
                break
            left -= changed
            if changed:
                pages = changed * large.pages_each
                self._events.record(self._clock(), vm.name, Mechanism.LARGE_PAGE, pages, why)

    def _spare(self, pages: int) -> int:
        """Free frames above which the host stays in state high when it gives ``pages`` away."""
        return self._state.border(self._high_percent) + pages
