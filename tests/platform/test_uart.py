# SPDX-License-Identifier: Apache-2.0
"""16550A behaviour, by the PC16550D datasheet and by what Linux's 8250 driver probes for."""

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.platform import uart as u
from memvirt.state_record import new_record


def make() -> Any:
    uart = new_record(u.UART_DTYPE)[0]
    u.uart_reset(uart)
    return uart


def test_sent_bytes_are_drained_in_order() -> None:
    uart = make()
    for value in b"hello":
        assert u.uart_write(uart, u.REG_DATA, value) == u.UART_OK
    assert u.uart_output_pending(uart) == 5
    assert u.uart_drain(uart) == b"hello"
    assert u.uart_drain(uart) == b""


def test_full_output_ring_refuses_and_changes_nothing() -> None:
    uart = make()
    for i in range(u.RING_SIZE):
        assert u.uart_write(uart, u.REG_DATA, i & 0xFF) == u.UART_OK
    before = uart.copy()
    assert u.uart_write(uart, u.REG_DATA, 0x55) == u.UART_OUTPUT_FULL
    assert uart == before
    assert u.uart_drain(uart) == bytes(range(256)) * 16
    assert u.uart_write(uart, u.REG_DATA, 0x55) == u.UART_OK
    assert u.uart_drain(uart) == b"\x55"


def test_divisor_latch_hides_data_and_interrupt_enable() -> None:
    uart = make()
    u.uart_write(uart, u.REG_INTERRUPT_ENABLE, 0x05)
    u.uart_write(uart, u.REG_LINE_CONTROL, 0x83)
    u.uart_write(uart, 0, 0x34)
    u.uart_write(uart, 1, 0x12)
    assert (u.uart_read(uart, 0), u.uart_read(uart, 1)) == (0x34, 0x12)
    u.uart_write(uart, u.REG_LINE_CONTROL, 0x03)
    assert u.uart_read(uart, u.REG_INTERRUPT_ENABLE) == 0x05
    assert u.uart_output_pending(uart) == 0


def test_linux_autoconfig_finds_a_16550a() -> None:
    """The register sequence of Linux's drivers/tty/serial/8250 autoconfig()."""
    uart = make()

    def read(register: int) -> int:
        return int(u.uart_read(uart, register))

    def write(register: int, value: int) -> None:
        assert u.uart_write(uart, register, value) == u.UART_OK

    write(1, 0)
    assert read(1) & 0x0F == 0
    write(1, 0x0F)
    assert read(1) == 0x0F
    write(1, 0)
    write(4, 0x10 | 0x0A)
    assert read(6) & 0xF0 == 0x90  # OUT2 and RTS loop back to carrier and clear-to-send
    write(4, 0)
    write(3, 0xBF)
    write(2, 0)  # no enhanced feature register
    write(3, 0)
    write(2, 0x01)
    assert read(2) >> 6 == 3  # 16550A
    write(2, 0x21)
    assert read(2) >> 5 == 6  # no 64-byte FIFO
    write(3, 0xBF)
    assert read(2) != 0  # not a 16650: its enhanced feature register would read 0
    write(3, 0)
    write(1, 0x40)
    assert read(1) & 0x40 == 0  # not an XScale port
    write(7, 0xA5)
    assert read(7) == 0xA5


def test_transmit_empty_interrupt_rises_again_on_each_enable() -> None:
    """Linux's serial8250_THRE_test: a chip failing this gets a slow timer workaround."""
    uart = make()
    for _ in range(2):
        u.uart_write(uart, 1, u.IER_TRANSMIT_EMPTY)
        assert u.uart_read(uart, 2) & 0x0F == u.IIR_TRANSMIT_EMPTY
        assert u.uart_read(uart, 2) & 0x0F == u.IIR_NONE  # reading it cleared it
        u.uart_write(uart, 1, 0)
    u.uart_write(uart, 1, u.IER_TRANSMIT_EMPTY)
    u.uart_read(uart, 2)
    u.uart_write(uart, 0, 65)
    assert u.uart_read(uart, 2) & 0x0F == u.IIR_TRANSMIT_EMPTY


def test_interrupt_priorities() -> None:
    uart = make()
    u.uart_write(uart, 4, u.MCR_LOOP)
    u.uart_read(uart, 6)  # forget what entering loopback changed
    u.uart_write(uart, 1, 0x0F)
    u.uart_write(uart, 0, 1)
    u.uart_write(uart, 0, 2)  # one byte of room without FIFO: overrun
    u.uart_write(uart, 4, u.MCR_LOOP | u.MCR_RTS)
    assert u.uart_read(uart, 2) == u.IIR_LINE_STATUS
    assert u.uart_read(uart, 5) == 0x63
    assert u.uart_read(uart, 2) == u.IIR_RECEIVED
    assert u.uart_read(uart, 0) == 2
    assert u.uart_read(uart, 2) == u.IIR_TRANSMIT_EMPTY
    assert u.uart_read(uart, 2) == u.IIR_MODEM_STATUS
    assert u.uart_read(uart, 6) & 0x0B == 0x01  # only clear-to-send changed
    assert u.uart_read(uart, 2) == u.IIR_NONE


@pytest.mark.parametrize(("code", "level"), [(0, 1), (1, 4), (2, 8), (3, 14)])
def test_trigger_level_divides_received_from_timeout(code: int, level: int) -> None:
    uart = make()
    u.uart_write(uart, 2, 0x01 | code << 6)
    u.uart_write(uart, 1, u.IER_RECEIVED)
    for count in range(1, 17):
        u.uart_receive_byte(uart, count)
        wanted = u.IIR_RECEIVED if count >= level else u.IIR_TIMEOUT
        assert u.uart_read(uart, 2) & 0x0F == wanted


def test_irq_needs_out2() -> None:
    uart = make()
    u.uart_write(uart, 1, u.IER_TRANSMIT_EMPTY)
    assert u.uart_interrupt(uart) == 0
    u.uart_write(uart, 4, u.MCR_OUT2)
    assert u.uart_interrupt(uart) == 1


def test_ring_indicator_reports_only_its_trailing_edge() -> None:
    uart = make()
    u.uart_write(uart, 4, u.MCR_LOOP)
    u.uart_read(uart, 6)
    u.uart_write(uart, 4, u.MCR_LOOP | 0x04)
    assert u.uart_read(uart, 6) == 0x40
    u.uart_write(uart, 4, u.MCR_LOOP)
    assert u.uart_read(uart, 6) == 0x04


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), st.integers(1, 60)), max_size=30))
def test_input_arrives_complete_and_in_order(steps: list[bytes | int]) -> None:
    uart = make()
    u.uart_write(uart, 2, 0x01)
    model: deque[int] = deque()
    for step in steps:
        if isinstance(step, bytes):
            assert u.uart_receive(uart, step) == len(step)
            model.extend(step)
            continue
        for _ in range(step):
            ready = u.uart_read(uart, 5) & u.LSR_DATA_READY
            assert ready == (1 if model else 0)
            if ready:
                assert u.uart_read(uart, 0) == model.popleft()


def test_input_ring_says_how_much_it_took() -> None:
    uart = make()
    assert u.uart_receive(uart, bytes(5000)) == u.RING_SIZE + 1  # one byte is in the receiver
