# SPDX-License-Identifier: Apache-2.0
"""I/O APIC with 24 inputs (Intel 82093AA datasheet, order 290566).

An input's interrupt goes to the local APIC in the same call. The polarity bit is kept and ignored:
every line is 1 while it is asserted. As the datasheet demands, an edge on a masked input is lost.
SMI, INIT and ExtINT entries deliver nothing: the 8259A reaches the processor through LINT0 alone.
"""

from collections.abc import MutableSequence
from typing import Annotated

import numpy as np

from memvirt.compiled import compiled
from memvirt.platform.lapic import (
    BASE_ENABLE,
    SVR_ENABLE,
    LapicState,
    lapic_accept,
    lapic_accept_level,
    lapic_is_destination,
)
from memvirt.state_record import Record, record_dtype

IO_APIC_BASE = 0xFEC0_0000
IO_APIC_PINS = 24
IO_APIC_ID = 1  # unlike the processor's: both lie on one APIC bus
TIMER_PIN = 2
"""Where a PC wires the 8254's output, IRQ 0; input 0 is not connected."""

OFFSET_SELECT, OFFSET_WINDOW = 0x00, 0x10
INDEX_ID, INDEX_VERSION, INDEX_ARBITRATION, INDEX_TABLE = 0x00, 0x01, 0x02, 0x10
VERSION = (IO_APIC_PINS - 1) << 16 | 0x11
LOGICAL = 1 << 11
DELIVERY_STATUS = 1 << 12
REMOTE_IRR = 1 << 14
LEVEL = 1 << 15
MASKED = 1 << 16
_FIXED, _LOWEST_PRIORITY, _NMI = 0, 1, 4
_LOW_WRITABLE = 0x1_FFFF & ~(DELIVERY_STATUS | REMOTE_IRR)
_MASK_32 = 0xFFFF_FFFF


class IoApicState(Record):
    """State record; see the module docstring."""

    select: int  # IOREGSEL
    id: int
    lines: int  # present level of the inputs
    low: Annotated[MutableSequence[int], np.int64, IO_APIC_PINS]
    destination: Annotated[MutableSequence[int], np.int64, IO_APIC_PINS]


IO_APIC_DTYPE = record_dtype(IoApicState)


@compiled
def io_apic_reset(io_apic: IoApicState) -> None:
    """Every input masked."""
    io_apic.select = 0
    io_apic.id = IO_APIC_ID
    io_apic.lines = 0
    for pin in range(IO_APIC_PINS):
        io_apic.low[pin] = MASKED
        io_apic.destination[pin] = 0


@compiled
def _deliver(io_apic: IoApicState, lapic: LapicState, pin: int) -> None:
    """Send the interrupt of an asserted input, unless it is masked or waits for its EOI."""
    entry = io_apic.low[pin]
    level = entry & LEVEL != 0
    if entry & MASKED or (level and entry & REMOTE_IRR):
        return
    if not lapic_is_destination(lapic, entry & LOGICAL, io_apic.destination[pin]):
        return
    mode = entry >> 8 & 7
    if mode == _NMI:
        lapic.nmi_pending = 1
    elif mode == _FIXED or mode == _LOWEST_PRIORITY:
        if lapic.base_msr & BASE_ENABLE == 0 or lapic.spurious & SVR_ENABLE == 0:
            return
        if level:
            io_apic.low[pin] = entry | REMOTE_IRR
            lapic_accept_level(lapic, entry & 0xFF)
        else:
            lapic_accept(lapic, entry & 0xFF)


@compiled
def io_apic_set_line(io_apic: IoApicState, lapic: LapicState, pin: int, level: int) -> None:
    """Drive input ``pin`` to 0 or 1."""
    bit = 1 << pin
    if (io_apic.lines & bit != 0) == (level != 0):
        return
    io_apic.lines ^= bit
    if level != 0:
        _deliver(io_apic, lapic, pin)


@compiled
def io_apic_end_of_interrupt(io_apic: IoApicState, lapic: LapicState, vector: int) -> None:
    """The local APIC's EOI message for a level-triggered vector: inputs still high come again."""
    for pin in range(IO_APIC_PINS):
        entry = io_apic.low[pin]
        if entry & 0xFF != vector or entry & LEVEL == 0 or entry & REMOTE_IRR == 0:
            continue
        io_apic.low[pin] = entry & ~REMOTE_IRR
        if io_apic.lines >> pin & 1:
            _deliver(io_apic, lapic, pin)


@compiled
def io_apic_read(io_apic: IoApicState, offset: int) -> int:
    """The 32-bit register at ``offset`` of the page: IOREGSEL or IOWIN."""
    if offset == OFFSET_SELECT:
        return io_apic.select
    if offset != OFFSET_WINDOW:
        return 0
    index = io_apic.select
    if index == INDEX_ID or index == INDEX_ARBITRATION:
        return io_apic.id << 24
    if index == INDEX_VERSION:
        return VERSION
    pin = (index - INDEX_TABLE) >> 1
    if not 0 <= pin < IO_APIC_PINS:
        return 0
    return io_apic.destination[pin] << 24 if index & 1 else io_apic.low[pin]


@compiled
def _write_entry(io_apic: IoApicState, lapic: LapicState, pin: int, value: int) -> None:
    """Write the low half of an entry. Made edge-triggered, it waits for no EOI any more."""
    entry = value & _LOW_WRITABLE
    if entry & LEVEL:
        entry |= io_apic.low[pin] & REMOTE_IRR
    io_apic.low[pin] = entry
    if entry & LEVEL and io_apic.lines >> pin & 1:
        _deliver(io_apic, lapic, pin)


@compiled
def io_apic_write(io_apic: IoApicState, lapic: LapicState, offset: int, value: int) -> None:
    """Write the 32-bit register at ``offset`` of the page."""
    value &= _MASK_32
    if offset == OFFSET_SELECT:
        io_apic.select = value & 0xFF
    elif offset == OFFSET_WINDOW:
        pin = (io_apic.select - INDEX_TABLE) >> 1
        if io_apic.select == INDEX_ID:
            io_apic.id = value >> 24 & 15
        elif 0 <= pin < IO_APIC_PINS and io_apic.select & 1:
            io_apic.destination[pin] = value >> 24
        elif 0 <= pin < IO_APIC_PINS:
            _write_entry(io_apic, lapic, pin, value)
