# SPDX-License-Identifier: Apache-2.0
"""The event log: bounded, but nothing is lost to those who subscribe, and counts are complete."""

from __future__ import annotations

from memvirt.vmkernel.events import Event, EventLog, Mechanism


def fill(log: EventLog, count: int) -> None:
    for number in range(count):
        mechanism = Mechanism.SWAP if number % 3 else "own"
        log.record(number, "vm", mechanism, number, "because")


def test_a_subscriber_sees_every_event_in_order() -> None:
    log = EventLog(10)
    seen: list[Event] = []
    end = log.subscribe(seen.append)
    fill(log, 1000)
    assert [event.time_ns for event in seen] == list(range(1000))
    assert (len(log), log.lost, log.recorded) == (10, 990, 1000)
    assert log.counts == {"swap": 666, "own": 334}
    end()
    end()
    fill(log, 1)
    assert len(seen) == 1000


def test_one_who_comes_later_can_have_what_is_kept() -> None:
    log = EventLog(10)
    fill(log, 4)
    seen: list[Event] = []
    log.subscribe(seen.append, replay=True)
    fill(log, 2)
    assert [event.time_ns for event in seen] == [0, 1, 2, 3, 0, 1]
