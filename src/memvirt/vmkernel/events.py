# SPDX-License-Identifier: Apache-2.0
"""Every decision of the VMkernel, with its reason: a bounded log, counts, and subscribers.

The log keeps the last events for people who look; whoever must not miss one subscribes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Event", "EventLog", "Mechanism"]


class Mechanism(StrEnum):
    """What was done, or decided. Reclaim mechanisms from outside add names of their own."""

    POWER_ON = "power on"
    POWER_OFF = "power off"
    STATE = "state"
    TARGET = "target"
    SHARE = "share"
    BALLOON = "balloon"
    COMPRESS = "compress"
    SWAP = "swap"
    DISCARD = "discard"  # a page of zeroes needs no place
    RESTORE = "restore"  # evicted pages brought back before the guest asked
    LARGE_PAGE = "large page"
    RESIZE = "resize"  # machine memory
    SETTINGS = "settings"  # somebody changed shares, reservation, limit or balloon target
    BLOCK = "block"
    PAUSE = "pause"
    THROTTLE = "throttle"  # its quanta cost the host too much
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class Event:
    """One decision. ``vm`` is empty for those that concern the whole host.

    ``mechanism`` is one of ``Mechanism`` or the name of a registered reclaim mechanism.
    """

    time_ns: int
    vm: str
    mechanism: str
    pages: int
    reason: str


class EventLog:
    """The last ``capacity`` events, oldest first. ``lost`` counts those that fell out."""

    def __init__(self, capacity: int) -> None:
        self._events: deque[Event] = deque(maxlen=capacity)
        self._recorded = 0
        self._sinks: list[Callable[[Event], object]] = []
        self._counts: Counter[str] = Counter()

    def record(self, time_ns: int, vm: str, mechanism: str, pages: int, reason: str) -> None:
        """Note a decision, and tell all subscribers, in the order they subscribed.

        What a subscriber raises goes to the caller: the event is in the log then.
        """
        event = Event(time_ns, vm, str(mechanism), pages, reason)
        self._events.append(event)
        self._recorded += 1
        self._counts[event.mechanism] += 1
        for sink in tuple(self._sinks):
            sink(event)

    def subscribe(
        self, sink: Callable[[Event], object], *, replay: bool = False
    ) -> Callable[[], None]:
        """Call ``sink`` with each event from now on; returns what ends that.

        It is called at a quiescent point, on the thread that runs the host. With ``replay`` it
        gets the events that are kept first: right after the host was made, that is all of them.
        """
        if replay:
            for event in tuple(self._events):
                sink(event)
        self._sinks.append(sink)

        def unsubscribe() -> None:
            if sink in self._sinks:
                self._sinks.remove(sink)

        return unsubscribe

    @property
    def counts(self) -> Counter[str]:
        """Events ever recorded, by mechanism; those that fell out of the log too."""
        return Counter(self._counts)

    @property
    def recorded(self) -> int:
        """Number of events ever recorded: the position of the next one."""
        return self._recorded

    @property
    def lost(self) -> int:
        """How many of the oldest events are no longer kept."""
        return self._recorded - len(self._events)

    def since(self, position: int) -> list[Event]:
        """The events recorded from ``position`` on that are still kept."""
        wanted = min(self._recorded - position, len(self._events))
        return list(self._events)[len(self._events) - wanted :] if wanted > 0 else []

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)
