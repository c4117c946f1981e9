# SPDX-License-Identifier: Apache-2.0
"""MC146818A clock against Python's calendar, and the PC's memory-size cells."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.platform import cmos as c
from memvirt.platform.clock import NEVER
from memvirt.state_record import new_record

SECOND = 10**9


def make(epoch: int = c.DEFAULT_EPOCH, memory_bytes: int = 64 << 20) -> Any:
    cmos = new_record(c.CMOS_DTYPE)[0]
    c.cmos_configure(cmos, memory_bytes, epoch)
    return cmos


def read(cmos: Any, cell: int, now: int = 0) -> int:
    cmos.index = cell
    return int(c.cmos_read(cmos, now))


def write(cmos: Any, cell: int, value: int, now: int = 0) -> None:
    cmos.index = cell
    c.cmos_write(cmos, value, now)


def bcd(value: int) -> int:
    return int(str(value), 16)


def clock(cmos: Any, now: int, *, binary: bool, hours_24: bool) -> datetime:
    def number(cell: int) -> int:
        raw = read(cmos, cell, now)
        return raw if binary else int(f"{raw:x}")

    hour = read(cmos, 4, now)
    if not hours_24:
        afternoon = hour & 0x80
        hour &= 0x7F
        hour = hour if binary else int(f"{hour:x}")
        hour = hour % 12 + (12 if afternoon else 0)
    elif not binary:
        hour = int(f"{hour:x}")
    year = number(c.CENTURY) * 100 + number(9)
    return datetime(year, number(8), number(7), hour, number(2), number(0), tzinfo=UTC)


EPOCHS = st.integers(0, 4_102_444_799)  # 1970 to 2099


@settings(max_examples=200, deadline=None)
@given(EPOCHS, st.booleans(), st.booleans())
def test_clock_shows_the_calendar(epoch: int, binary: bool, hours_24: bool) -> None:
    cmos = make(epoch)
    write(cmos, c.STATUS_B, (4 if binary else 0) | (2 if hours_24 else 0))
    shown = clock(cmos, 5 * SECOND, binary=binary, hours_24=hours_24)
    wanted = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=epoch + 5)
    assert shown == wanted
    assert read(cmos, 6, 5 * SECOND) == wanted.isoweekday() % 7 + 1


@pytest.mark.parametrize(("first", "last"), [(1999, 2004), (2099, 2101)])
def test_every_day_round_the_leap_rules(first: int, last: int) -> None:
    """Random epochs miss the two days a year at which a wrong month rounding shows."""
    cmos = make(0)
    day = datetime(first, 1, 1, tzinfo=UTC)
    while day.year <= last:
        now = int(day.timestamp()) * SECOND
        assert clock(cmos, now, binary=False, hours_24=True) == day
        day += timedelta(days=1)


@settings(max_examples=100, deadline=None)
@given(EPOCHS, st.booleans())
def test_setting_the_clock(epoch: int, binary: bool) -> None:
    cmos = make()
    wanted = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=epoch)
    mode = 2 | (4 if binary else 0)
    write(cmos, c.STATUS_B, mode | c.B_SET, SECOND)
    century, year = divmod(wanted.year, 100)
    cells = ((0, wanted.second), (2, wanted.minute), (4, wanted.hour), (7, wanted.day))
    for cell, value in (*cells, (8, wanted.month), (9, year), (c.CENTURY, century)):
        write(cmos, cell, value if binary else bcd(value), 2 * SECOND)
    assert clock(cmos, 9 * SECOND, binary=binary, hours_24=True) == wanted  # stopped
    write(cmos, c.STATUS_B, mode, 10 * SECOND)
    shown = clock(cmos, 13 * SECOND, binary=binary, hours_24=True)
    assert shown == wanted + timedelta(seconds=3)


def test_update_in_progress_only_before_the_second_ends() -> None:
    cmos = make()
    assert read(cmos, c.STATUS_A, 0) == 0x26
    assert read(cmos, c.STATUS_A, SECOND - 1) == 0xA6
    assert read(cmos, c.STATUS_A, SECOND - c.UPDATE_NS - 1) == 0x26
    assert read(cmos, c.STATUS_D) == 0x80


@pytest.mark.parametrize(
    ("mib", "extended_kib", "above_16_mib", "above_4_gib"),
    [(16, 15360, 0, 0), (64, 64512, 768, 0), (128, 65535, 1792, 0), (5120, 65535, 48896, 32768)],
)
def test_memory_cells(mib: int, extended_kib: int, above_16_mib: int, above_4_gib: int) -> None:
    cmos = make(memory_bytes=mib << 20)
    assert read(cmos, 0x15) | read(cmos, 0x16) << 8 == 640
    for low in (0x17, 0x30):
        assert read(cmos, low) | read(cmos, low + 1) << 8 == extended_kib
    assert read(cmos, 0x34) | read(cmos, 0x35) << 8 == above_16_mib
    high = sum(read(cmos, 0x5B + i) << 8 * i for i in range(3))
    assert high == above_4_gib


def test_periodic_interrupt() -> None:
    cmos = make()
    assert c.cmos_next_deadline(cmos) == NEVER
    write(cmos, c.STATUS_B, c.B_PERIODIC | 2)  # 1024 Hz
    deadline = c.cmos_next_deadline(cmos)
    assert deadline == -(-SECOND // 1024)
    c.cmos_advance(cmos, deadline - 1)
    assert c.cmos_interrupt(cmos) == 0
    c.cmos_advance(cmos, deadline)
    assert c.cmos_interrupt(cmos) == 1
    assert read(cmos, c.STATUS_C, deadline) == 0xC0
    assert c.cmos_interrupt(cmos) == 0


def test_update_ended_interrupt() -> None:
    cmos = make()
    write(cmos, c.STATUS_B, c.B_UPDATE_ENDED | 2)
    assert c.cmos_next_deadline(cmos) == SECOND
    c.cmos_advance(cmos, SECOND)
    assert read(cmos, c.STATUS_C, SECOND) & 0x90 == 0x90
