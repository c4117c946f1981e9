# SPDX-License-Identifier: Apache-2.0
"""Every decision of the VMkernel, with its reason, in a bounded log."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Mechanism(StrEnum):
    """What was done, or decided."""

    POWER_ON = "power on"
    POWER_OFF = "power off"
    STATE = "state"
    TARGET = "target"
    SHARE = "share"
    BALLOON = "balloon"
    COMPRESS = "compress"
    SWAP = "swap"
    DISCARD = "discard"  # a page of zeroes needs no place
    LARGE_PAGE = "large page"
    BLOCK = "block"
    PAUSE = "pause"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class Event:
    """One decision. ``vm`` is empty for those that concern the whole host."""

    time_ns: int
    vm: str
    mechanism: Mechanism
    pages: int
    reason: str


class EventLog:
    """The last ``capacity`` events, oldest first. ``lost`` counts those that fell out."""

    def __init__(self, capacity: int) -> None:
        self._events: deque[Event] = deque(maxlen=capacity)
        self._recorded = 0

    def record(self, time_ns: int, vm: str, mechanism: Mechanism, pages: int, reason: str) -> None:
        self._events.append(Event(time_ns, vm, mechanism, pages, reason))
        self._recorded += 1

    @property
    def recorded(self) -> int:
        """Number of events ever recorded: the position of the next one."""
        return self._recorded

    @property
    def lost(self) -> int:
        return self._recorded - len(self._events)

    def since(self, position: int) -> list[Event]:
        """The events recorded from ``position`` on that are still kept."""
        wanted = min(self._recorded - position, len(self._events))
        return list(self._events)[len(self._events) - wanted :] if wanted > 0 else []

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)
