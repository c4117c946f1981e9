# SPDX-License-Identifier: Apache-2.0
"""MC146818A real-time clock and the PC's CMOS memory (Motorola MC146818A datasheet).

The clock reads ``base_epoch`` (seconds since 1970-01-01 UTC) at virtual time 0 and runs with
virtual time, so a run is reproducible. Cells above the clock hold what a PC's firmware stores
(memory sizes); the century is in cell 0x32. Alarms never fire; periodic and update interrupts do.
"""

from collections.abc import MutableSequence
from typing import Annotated

import numpy as np

from memvirt.compiled import compiled
from memvirt.platform.clock import NANOSECONDS_PER_SECOND, NEVER
from memvirt.state_record import Record, record_dtype

DEFAULT_EPOCH = 1_735_689_600
"""2025-01-01 00:00:00 UTC."""

STATUS_A = 0x0A
STATUS_B = 0x0B
STATUS_C = 0x0C
STATUS_D = 0x0D
CENTURY = 0x32
A_UPDATE_IN_PROGRESS = 0x80
B_SET = 0x80
B_PERIODIC = 0x40
B_UPDATE_ENDED = 0x10
B_BINARY = 0x04
B_24_HOURS = 0x02
C_REQUEST = 0x80
UPDATE_NS = 2_228_000
"""The update flag is up this long before a second ends: 244 us of warning, 1984 us of update."""

SLOW_CLOCK_HERTZ = 32_768
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


class CmosState(Record):
    """State record; see the module docstring."""

    index: int
    base_epoch: int
    offset: int  # seconds the guest has moved the clock by
    pending: int  # status C without its request bit
    periodic_done: int  # periodic intervals already reported
    update_done: int  # seconds already reported
    cells: Annotated[MutableSequence[int], np.int64, 128]


CMOS_DTYPE = record_dtype(CmosState)


def cmos_configure(cmos: CmosState, memory_bytes: int, base_epoch: int) -> None:
    """Fill the cells as firmware would for ``memory_bytes`` of RAM (Ralf Brown's CMOS list)."""
    cells = cmos.cells
    for i in range(len(cells)):
        cells[i] = 0
    cells[STATUS_A] = 0x26
    cells[STATUS_B] = B_24_HOURS
    cells[0x14] = 0x06  # equipment: coprocessor, pointing device; no floppy
    below_4_gib = min(memory_bytes, 3 * GIB)
    extended_kib = min(max(below_4_gib - MIB, 0) // KIB, 0xFFFF)
    above_16_mib = min(max(below_4_gib - 16 * MIB, 0) >> 16, 0xFFFF)
    above_4_gib = max(memory_bytes - 3 * GIB, 0) >> 16
    for first, count, value in (
        (0x15, 2, 640),
        (0x17, 2, extended_kib),
        (0x30, 2, extended_kib),
        (0x34, 2, above_16_mib),
        (0x5B, 3, above_4_gib),
    ):
        for i in range(count):
            cells[first + i] = value >> (8 * i) & 0xFF
    cmos.base_epoch = base_epoch
    cmos.offset = 0


@compiled
def _encode(cmos: CmosState, value: int) -> int:
    if cmos.cells[STATUS_B] & B_BINARY:
        return value
    return value // 10 << 4 | value % 10


@compiled
def _decode(cmos: CmosState, cell: int) -> int:
    value = cmos.cells[cell]
    if cmos.cells[STATUS_B] & B_BINARY:
        return value
    return (value >> 4) * 10 + (value & 15)


@compiled
def _store_time(cmos: CmosState, epoch: int) -> None:
    """Write ``epoch`` into the clock cells (Hinnant, "chrono-Compatible Low-Level Date")."""
    days = epoch // 86400
    second = epoch % 86400
    shifted = days + 719468
    era = shifted // 146097
    day_of_era = shifted - era * 146097
    year_of_era = (
        day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096
    ) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    march_month = (5 * day_of_year + 2) // 153
    month = march_month + 3 if march_month < 10 else march_month - 9
    year = year_of_era + era * 400 + (1 if month <= 2 else 0)
    hour = second // 3600
    cells = cmos.cells
    cells[0] = _encode(cmos, second % 60)
    cells[2] = _encode(cmos, second // 60 % 60)
    if cells[STATUS_B] & B_24_HOURS:
        cells[4] = _encode(cmos, hour)
    else:
        cells[4] = _encode(cmos, (hour + 11) % 12 + 1) | (0x80 if hour >= 12 else 0)
    cells[6] = _encode(cmos, (days + 4) % 7 + 1)
    cells[7] = _encode(cmos, day_of_year - (153 * march_month + 2) // 5 + 1)
    cells[8] = _encode(cmos, month)
    cells[9] = _encode(cmos, year % 100)
    cells[CENTURY] = _encode(cmos, year // 100)


@compiled
def _load_time(cmos: CmosState) -> int:
    """Seconds since 1970 shown by the clock cells; nonsense in them gives a nonsense time."""
    hour_cell = cmos.cells[4]
    hour = _decode(cmos, 4)
    if cmos.cells[STATUS_B] & B_24_HOURS == 0:
        cmos.cells[4] = hour_cell & 0x7F
        hour = _decode(cmos, 4) % 12 + (12 if hour_cell & 0x80 else 0)
        cmos.cells[4] = hour_cell
    year = _decode(cmos, CENTURY) * 100 + _decode(cmos, 9)
    month = _decode(cmos, 8)
    if month <= 2:
        year -= 1
    era = year // 400
    year_of_era = year - era * 400
    march_month = month - 3 if month > 2 else month + 9
    day_of_year = (153 * march_month + 2) // 5 + _decode(cmos, 7) - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    days = era * 146097 + day_of_era - 719468
    return ((days * 24 + hour) * 60 + _decode(cmos, 2)) * 60 + _decode(cmos, 0)


@compiled
def _is_clock_cell(cell: int) -> int:
    if cell == 1 or cell == 3 or cell == 5:
        return 0  # alarm cells: plain memory here
    return 1 if cell <= 9 or cell == CENTURY else 0


@compiled
def _is_set(cmos: CmosState) -> int:
    return cmos.cells[STATUS_B] & B_SET


@compiled
def _refresh_clock(cmos: CmosState, now: int) -> None:
    if _is_set(cmos) == 0:
        _store_time(cmos, cmos.base_epoch + cmos.offset + now // NANOSECONDS_PER_SECOND)


@compiled
def _adopt_clock(cmos: CmosState, now: int) -> None:
    """Let the clock run on from what the cells show."""
    cmos.offset = _load_time(cmos) - cmos.base_epoch - now // NANOSECONDS_PER_SECOND


@compiled
def cmos_read(cmos: CmosState, now: int) -> int:
    """Read port 0x71: the cell selected through port 0x70."""
    cell = cmos.index
    if _is_clock_cell(cell) != 0:
        _refresh_clock(cmos, now)
    elif cell == STATUS_A:
        value = cmos.cells[STATUS_A] & ~A_UPDATE_IN_PROGRESS
        rest = NANOSECONDS_PER_SECOND - now % NANOSECONDS_PER_SECOND
        if rest <= UPDATE_NS and _is_set(cmos) == 0:
            value |= A_UPDATE_IN_PROGRESS
        return value
    elif cell == STATUS_C:
        value = cmos.pending | (C_REQUEST if cmos_interrupt(cmos) != 0 else 0)
        cmos.pending = 0
        return value
    elif cell == STATUS_D:
        return 0x80  # battery good
    return cmos.cells[cell]


@compiled
def cmos_write(cmos: CmosState, value: int, now: int) -> None:
    """Write port 0x71. Call ``cmos_advance`` first, so that no past interrupt is lost."""
    cell = cmos.index
    value &= 0xFF
    if cell in (STATUS_C, STATUS_D):
        return
    if cell == STATUS_A:
        cmos.cells[cell] = value & ~A_UPDATE_IN_PROGRESS
        _restart_periodic(cmos, now)
    elif cell == STATUS_B:
        _refresh_clock(cmos, now)
        was_set = _is_set(cmos)
        epoch = _load_time(cmos)
        if value & B_SET:
            value &= ~B_UPDATE_ENDED  # SET clears UIE (datasheet, register B)
        cmos.cells[cell] = value
        if was_set == 0 and _is_set(cmos) != 0:
            _store_time(cmos, epoch)
        elif was_set != 0 and _is_set(cmos) == 0:
            _adopt_clock(cmos, now)
    elif _is_clock_cell(cell) != 0:
        _refresh_clock(cmos, now)
        cmos.cells[cell] = value
        if _is_set(cmos) == 0:
            _adopt_clock(cmos, now)
    else:
        cmos.cells[cell] = value


@compiled
def _slow_ticks(now: int) -> int:
    rest = now % NANOSECONDS_PER_SECOND
    return (
        now // NANOSECONDS_PER_SECOND * SLOW_CLOCK_HERTZ
        + rest * SLOW_CLOCK_HERTZ // NANOSECONDS_PER_SECOND
    )


@compiled
def _periodic_ticks(cmos: CmosState) -> int:
    """Period of the periodic interrupt in 32,768 Hz ticks; 0 = off (datasheet table 5)."""
    rate = cmos.cells[STATUS_A] & 15
    if rate == 0:
        return 0
    return 1 << ((rate + 7 if rate <= 2 else rate) - 1)


@compiled
def _restart_periodic(cmos: CmosState, now: int) -> None:
    period = _periodic_ticks(cmos)
    cmos.periodic_done = _slow_ticks(now) // period if period > 0 else 0


@compiled
def cmos_advance(cmos: CmosState, now: int) -> None:
    """Raise the periodic and update-ended flags for what has happened up to ``now``."""
    period = _periodic_ticks(cmos)
    if period > 0:
        done = _slow_ticks(now) // period
        if done > cmos.periodic_done:
            cmos.periodic_done = done
            cmos.pending |= B_PERIODIC
    seconds = now // NANOSECONDS_PER_SECOND
    if seconds > cmos.update_done:
        cmos.update_done = seconds
        if _is_set(cmos) == 0:
            cmos.pending |= B_UPDATE_ENDED


@compiled
def cmos_interrupt(cmos: CmosState) -> int:
    """1 when the clock drives IRQ 8: a flag is up whose interrupt is enabled."""
    enabled = cmos.cells[STATUS_B] & (B_PERIODIC | B_UPDATE_ENDED)
    return 1 if cmos.pending & enabled else 0


@compiled
def cmos_next_deadline(cmos: CmosState) -> int:
    """Virtual nanoseconds of the next enabled clock interrupt, or ``NEVER``."""
    enabled = cmos.cells[STATUS_B]
    deadline = NEVER
    if enabled & B_UPDATE_ENDED and _is_set(cmos) == 0:
        deadline = (cmos.update_done + 1) * NANOSECONDS_PER_SECOND
    period = _periodic_ticks(cmos)
    if enabled & B_PERIODIC and period > 0:
        tick = (cmos.periodic_done + 1) * period
        rest = tick % SLOW_CLOCK_HERTZ * NANOSECONDS_PER_SECOND
        moment = (
            tick // SLOW_CLOCK_HERTZ * NANOSECONDS_PER_SECOND
            + (rest + SLOW_CLOCK_HERTZ - 1) // SLOW_CLOCK_HERTZ
        )
        deadline = min(deadline, moment)
    return deadline
