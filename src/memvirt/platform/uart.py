# SPDX-License-Identifier: Apache-2.0
"""16550A serial port (National Semiconductor PC16550D datasheet, section 8, "Registers").

The line is infinitely fast: a byte written is sent at once, so the transmitter is always empty.
Sent bytes wait in ``output`` until Python drains them. When that ring is full, ``uart_write``
refuses a byte (``UART_OUTPUT_FULL``) and changes nothing: the caller must drain and repeat the
write. Bytes from outside wait in ``input`` and enter the 16-byte receive FIFO as it has room, so
the far end never overruns the guest; only loopback can set the overrun bit.
"""

from collections.abc import MutableSequence
from typing import Annotated

import numpy as np

from memvirt.compiled import compiled
from memvirt.state_record import Record, record_dtype

RING_SIZE = 4096
FIFO_SIZE = 16
UART_OK = 0
UART_OUTPUT_FULL = 1

# Register numbers (offset from the port base).
REG_DATA = 0
REG_INTERRUPT_ENABLE = 1
REG_INTERRUPT_ID = 2
REG_LINE_CONTROL = 3
REG_MODEM_CONTROL = 4
REG_LINE_STATUS = 5
REG_MODEM_STATUS = 6
REG_SCRATCH = 7

IER_RECEIVED = 0x01
IER_TRANSMIT_EMPTY = 0x02
IER_LINE_STATUS = 0x04
IER_MODEM_STATUS = 0x08
IIR_NONE = 0x01
IIR_MODEM_STATUS = 0x00
IIR_TRANSMIT_EMPTY = 0x02
IIR_RECEIVED = 0x04
IIR_LINE_STATUS = 0x06
IIR_TIMEOUT = 0x0C
IIR_FIFOS_ENABLED = 0xC0
LCR_DIVISOR_LATCH = 0x80
MCR_RTS = 0x02
MCR_OUT2 = 0x08
MCR_LOOP = 0x10
LSR_DATA_READY = 0x01
LSR_OVERRUN = 0x02
LSR_TRANSMIT_EMPTY = 0x60
MSR_CONNECTED = 0xB0
"""Modem lines outside loopback: carrier, data set ready and clear to send, all asserted."""


class UartState(Record):
    """State record; see the module docstring."""

    interrupt_enable: int
    line_control: int
    modem_control: int
    scratch: int
    divisor: int
    fifo_enabled: int
    trigger_level: int
    transmit_empty_pending: int
    overrun: int
    modem_delta: int
    fifo_count: int
    input_head: int
    input_count: int
    output_head: int
    output_count: int
    fifo: Annotated[MutableSequence[int], np.int64, FIFO_SIZE]
    input: Annotated[MutableSequence[int], np.uint8, RING_SIZE]
    output: Annotated[MutableSequence[int], np.uint8, RING_SIZE]


UART_DTYPE = record_dtype(UartState)


@compiled
def uart_reset(uart: UartState) -> None:
    """Master reset: datasheet table "Reset configuration"; queued input and output survive."""
    uart.interrupt_enable = 0
    uart.line_control = 0
    uart.modem_control = 0
    uart.scratch = 0
    uart.divisor = 1
    uart.fifo_enabled = 0
    uart.trigger_level = 1
    uart.transmit_empty_pending = 0
    uart.overrun = 0
    uart.modem_delta = 0
    uart.fifo_count = 0


@compiled
def _fifo_push(uart: UartState, value: int) -> None:
    room = FIFO_SIZE if uart.fifo_enabled != 0 else 1
    if uart.fifo_count >= room:
        uart.overrun = 1
        if room == 1:
            uart.fifo[0] = value
        return
    uart.fifo[uart.fifo_count] = value
    uart.fifo_count += 1


@compiled
def _refill(uart: UartState) -> None:
    """Move outside input into the receive FIFO while it has room; loopback disconnects it."""
    if uart.modem_control & MCR_LOOP:
        return
    room = FIFO_SIZE if uart.fifo_enabled != 0 else 1
    while uart.input_count > 0 and uart.fifo_count < room:
        uart.fifo[uart.fifo_count] = uart.input[uart.input_head]
        uart.fifo_count += 1
        uart.input_head = (uart.input_head + 1) % RING_SIZE
        uart.input_count -= 1


@compiled
def _fifo_pop(uart: UartState) -> int:
    if uart.fifo_count == 0:
        return 0
    value = uart.fifo[0]
    uart.fifo_count -= 1
    for i in range(uart.fifo_count):
        uart.fifo[i] = uart.fifo[i + 1]
    _refill(uart)
    return value


@compiled
def uart_modem_lines(uart: UartState) -> int:
    """Bits 4-7 of the modem status; in loopback they are OUT2, OUT1, DTR and RTS."""
    if uart.modem_control & MCR_LOOP == 0:
        return MSR_CONNECTED
    control = uart.modem_control
    return (
        ((control & 0x02) << 3)
        | ((control & 0x01) << 5)
        | ((control & 0x04) << 4)
        | ((control & 0x08) << 4)
    )


@compiled
def uart_interrupt_id(uart: UartState) -> int:
    """IIR bits 0-3: the highest-priority pending source (datasheet table "Interrupt Control")."""
    enable = uart.interrupt_enable
    if enable & IER_LINE_STATUS and uart.overrun != 0:
        return IIR_LINE_STATUS
    if enable & IER_RECEIVED and uart.fifo_count > 0:
        if uart.fifo_enabled == 0 or uart.fifo_count >= uart.trigger_level:
            return IIR_RECEIVED
        return IIR_TIMEOUT
    if enable & IER_TRANSMIT_EMPTY and uart.transmit_empty_pending != 0:
        return IIR_TRANSMIT_EMPTY
    if enable & IER_MODEM_STATUS and uart.modem_delta != 0:
        return IIR_MODEM_STATUS
    return IIR_NONE


@compiled
def uart_interrupt(uart: UartState) -> int:
    """1 when the card drives its IRQ line: a source is pending and OUT2 opens the PC's gate."""
    if uart.modem_control & (MCR_OUT2 | MCR_LOOP) != MCR_OUT2:
        return 0
    return 1 if uart_interrupt_id(uart) != IIR_NONE else 0


@compiled
def uart_read(uart: UartState, register: int) -> int:
    """Value of register 0-7; reading has the datasheet's side effects."""
    divisor_latch = uart.line_control & LCR_DIVISOR_LATCH
    if register == REG_DATA:
        return uart.divisor & 0xFF if divisor_latch else _fifo_pop(uart)
    if register == REG_INTERRUPT_ENABLE:
        return uart.divisor >> 8 if divisor_latch else uart.interrupt_enable
    if register == REG_INTERRUPT_ID:
        source = uart_interrupt_id(uart)
        if source == IIR_TRANSMIT_EMPTY:
            uart.transmit_empty_pending = 0
        return source | (IIR_FIFOS_ENABLED if uart.fifo_enabled != 0 else 0)
    if register == REG_LINE_CONTROL:
        return uart.line_control
    if register == REG_MODEM_CONTROL:
        return uart.modem_control
    if register == REG_LINE_STATUS:
        status = LSR_TRANSMIT_EMPTY
        if uart.fifo_count > 0:
            status |= LSR_DATA_READY
        if uart.overrun != 0:
            status |= LSR_OVERRUN
            uart.overrun = 0
        return status
    if register == REG_MODEM_STATUS:
        status = uart_modem_lines(uart) | uart.modem_delta
        uart.modem_delta = 0
        return status
    return uart.scratch


@compiled
def _transmit(uart: UartState, value: int) -> int:
    if uart.modem_control & MCR_LOOP:
        _fifo_push(uart, value)
    else:
        if uart.output_count >= RING_SIZE:
            return UART_OUTPUT_FULL
        uart.output[(uart.output_head + uart.output_count) % RING_SIZE] = value
        uart.output_count += 1
    uart.transmit_empty_pending = 1
    return UART_OK


@compiled
def _write_fifo_control(uart: UartState, value: int) -> None:
    enabled = value & 1
    if value & 2 or enabled != uart.fifo_enabled:
        uart.fifo_count = 0
    if value & 4 or enabled != uart.fifo_enabled:
        uart.transmit_empty_pending = 1
    uart.fifo_enabled = enabled
    level = (value >> 6) & 3
    uart.trigger_level = 1 if level == 0 else 14 if level == 3 else 4 * level
    _refill(uart)


@compiled
def _write_modem_control(uart: UartState, value: int) -> None:
    before = uart_modem_lines(uart)
    uart.modem_control = value & 0x1F
    after = uart_modem_lines(uart)
    changed = (before ^ after) >> 4
    # Ring indicator reports only its trailing edge (datasheet 8.8, TERI).
    ring_ended = (before & ~after) & 0x40
    uart.modem_delta |= (changed & 0x0B) | (ring_ended >> 4)
    _refill(uart)


@compiled
def uart_write(uart: UartState, register: int, value: int) -> int:
    """Write register 0-7. ``UART_OUTPUT_FULL``: nothing happened, drain and write again."""
    value &= 0xFF
    divisor_latch = uart.line_control & LCR_DIVISOR_LATCH
    if register == REG_DATA:
        if divisor_latch == 0:
            return _transmit(uart, value)
        uart.divisor = (uart.divisor & 0xFF00) | value
    elif register == REG_INTERRUPT_ENABLE:
        if divisor_latch:
            uart.divisor = (uart.divisor & 0xFF) | (value << 8)
        else:
            rising = value & ~uart.interrupt_enable
            uart.interrupt_enable = value & 0x0F
            if rising & IER_TRANSMIT_EMPTY:
                uart.transmit_empty_pending = 1
    elif register == REG_INTERRUPT_ID:
        _write_fifo_control(uart, value)
    elif register == REG_LINE_CONTROL:
        uart.line_control = value
    elif register == REG_MODEM_CONTROL:
        _write_modem_control(uart, value)
    elif register == REG_SCRATCH:
        uart.scratch = value
    return UART_OK


@compiled
def uart_receive_byte(uart: UartState, value: int) -> int:
    """Queue one byte from outside; 1 when accepted, 0 when the input ring is full."""
    if uart.input_count >= RING_SIZE:
        return 0
    uart.input[(uart.input_head + uart.input_count) % RING_SIZE] = value & 0xFF
    uart.input_count += 1
    _refill(uart)
    return 1


@compiled
def uart_output_pending(uart: UartState) -> int:
    """Bytes the guest has sent and Python has not drained."""
    return uart.output_count


def uart_drain(uart: UartState) -> bytes:
    """Take every byte the guest has sent, oldest first."""
    head, count = int(uart.output_head), int(uart.output_count)
    output = uart.output
    taken = bytes([output[(head + i) % RING_SIZE] for i in range(count)])
    uart.output_head = (head + count) % RING_SIZE
    uart.output_count = 0
    return taken


def uart_receive(uart: UartState, data: bytes) -> int:
    """Queue bytes from outside; returns how many were accepted. The IRQ line is not refreshed."""
    accepted = 0
    for value in data:
        if not uart_receive_byte(uart, value):
            break
        accepted += 1
    return accepted
