# SPDX-License-Identifier: Apache-2.0
"""The composed PC: port map, interrupt wiring, deadlines, and use from compiled code."""

import ctypes
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import carray, cfunc, njit, types

from memvirt.platform.lapic import REG_LVT_TIMER, REG_TIMER_INITIAL
from memvirt.platform.pc import (
    PC_DTYPE,
    mmio_read,
    mmio_write,
    new_pc,
    pc_acknowledge_interrupt,
    pc_advance,
    pc_interrupt_pending,
    pc_next_deadline,
    pc_serial_input,
)
from memvirt.platform.pit import pit_nanoseconds
from memvirt.platform.ports import (
    IO_DRAIN_SERIAL_AND_RETRY,
    IO_OK,
    IO_STOP,
    io_read,
    io_write,
)
from memvirt.platform.uart import RING_SIZE, uart_drain
from memvirt.state_record import Record, record_dtype


def make() -> Any:
    return new_pc()[0]


def unmask_pics(pc: Any) -> None:
    for command, vector in ((0x20, 0x30), (0xA0, 0x38)):
        for port, value in ((command, 0x11), (command + 1, vector)):
            io_write(pc, port, 1, value, 0)
        io_write(pc, command + 1, 1, 4 if command == 0x20 else 2, 0)
        io_write(pc, command + 1, 1, 1, 0)


def test_timer_interrupts_arrive_through_the_pic_at_their_deadlines() -> None:
    pc = make()
    unmask_pics(pc)
    io_write(pc, 0x43, 1, 0x34, 0)
    io_write(pc, 0x40, 2, 11932, 0)  # a word goes to 0x40 and 0x41
    io_write(pc, 0x40, 1, 11932 >> 8, 0)
    start = pc.pit.channels[0].start_tick
    count = pc.pit.channels[0].count
    for i in range(1, 4):
        deadline = pc_next_deadline(pc, 0)
        assert deadline == pit_nanoseconds(start + i * count)
        pc_advance(pc, deadline - 1)
        assert not pc_interrupt_pending(pc)
        pc_advance(pc, deadline)
        assert pc_interrupt_pending(pc)
        assert pc_acknowledge_interrupt(pc) == 0x30
        io_write(pc, 0x20, 1, 0x20, deadline)
    assert pc_acknowledge_interrupt(pc) == -1


def test_local_apic_goes_before_the_pic() -> None:
    pc = make()
    unmask_pics(pc)
    mmio_write(pc, REG_LVT_TIMER, 4, 0xEF, 0)
    mmio_write(pc, REG_TIMER_INITIAL, 4, 50, 0)
    assert pc_next_deadline(pc, 0) == 100
    assert pc_next_deadline(pc, 500) == 500
    pc_advance(pc, 10**9)
    assert pc_acknowledge_interrupt(pc) == 0xEF
    assert pc_acknowledge_interrupt(pc) == 0x30


def test_only_aligned_32_bit_stores_reach_the_apic() -> None:
    pc = make()
    for size, offset in ((1, 0x80), (2, 0x80), (8, 0x80), (4, 0x82)):
        mmio_write(pc, offset, size, 0x20, 0)
    assert mmio_read(pc, 0x80, 4, 0) == 0
    assert mmio_read(pc, 0x30, 4, 0) == 0x50014
    assert mmio_read(pc, 0x32, 1, 0) == 0x05
    assert mmio_read(pc, 0x34, 4, 0) == 0


def test_serial_input_raises_irq_4() -> None:
    pc = make()
    unmask_pics(pc)
    io_write(pc, 0x3F9, 1, 0x01, 0)
    io_write(pc, 0x3FC, 1, 0x08, 0)
    assert pc_serial_input(pc, b"x") == 1
    assert pc_acknowledge_interrupt(pc) == 0x34
    assert io_read(pc, 0x3F8, 1, 0) == ord("x")


def test_full_serial_ring_asks_for_a_drain() -> None:
    pc = make()
    for _ in range(RING_SIZE):
        assert io_write(pc, 0x3F8, 1, 65, 0) == IO_OK
    assert io_write(pc, 0x3F8, 1, 66, 0) == IO_DRAIN_SERIAL_AND_RETRY
    assert io_write(pc, 0x3FB, 1, 0x80, 0) == IO_OK
    assert io_write(pc, 0x3F8, 1, 1, 0) == IO_OK  # the divisor, not data
    io_write(pc, 0x3FB, 1, 0x03, 0)
    assert len(uart_drain(pc.uart)) == RING_SIZE
    assert io_write(pc, 0x3F8, 1, 66, 0) == IO_OK
    assert uart_drain(pc.uart) == b"B"


@pytest.mark.parametrize(
    ("port", "size", "value", "field"),
    [
        (0xF4, 4, 0xDEADBEEF, "exit_requested"),
        (0x64, 1, 0xFE, "reset_requested"),
        (0x92, 1, 0x03, "reset_requested"),
        (0xCF9, 1, 0x06, "reset_requested"),
        (0x604, 2, 0x2000, "poweroff_requested"),
        (0x604, 2, 0x3C00 | 0x2000, "poweroff_requested"),
    ],
)
def test_stop_requests(port: int, size: int, value: int, field: str) -> None:
    pc = make()
    assert io_write(pc, port, size, value, 0) == IO_STOP
    assert getattr(pc.control, field) == 1
    if port == 0xF4:
        assert pc.control.exit_value == 0xDEADBEEF


@pytest.mark.parametrize(
    ("port", "size", "value"),
    [(0x92, 1, 0x02), (0xCF9, 1, 0x02), (0xCF8, 4, 0x80000600), (0x604, 2, 1), (0x64, 1, 0xFF)],
)
def test_what_does_not_stop(port: int, size: int, value: int) -> None:
    assert io_write(make(), port, size, value, 0) == IO_OK


def test_no_pci_and_unknown_ports_read_all_ones() -> None:
    pc = make()
    io_write(pc, 0xCF8, 4, 0x80000000, 0)
    assert io_read(pc, 0xCF8, 4, 0) == 0xFFFFFFFF
    assert io_read(pc, 0xCFC, 4, 0) == 0xFFFFFFFF
    assert (pc.unknown_reads, pc.unknown_writes) == (0, 0)
    assert io_read(pc, 0x1F0, 2, 0) == 0xFFFF
    io_write(pc, 0x1F0, 1, 0, 0)
    assert (pc.unknown_reads, pc.unknown_writes, pc.last_unknown_port) == (2, 1, 0x1F0)


def test_linux_keyboard_probe_meets_no_wait() -> None:
    """The commands of Linux's i8042_controller_check, _init and aux check, each answered."""
    pc = make()

    def command(number: int, parameter: int | None = None) -> int | None:
        io_write(pc, 0x64, 1, number, 0)
        if parameter is not None:
            io_write(pc, 0x60, 1, parameter, 0)
        return io_read(pc, 0x60, 1, 0) if io_read(pc, 0x64, 1, 0) & 1 else None

    assert io_read(pc, 0x64, 1, 0) & 3 == 0
    before = command(0x20)
    assert before is not None
    assert command(0x60, before & ~0x03) is None
    assert command(0x20) == before & ~0x03
    assert command(0xAA) == 0x55
    assert command(0xD3, 0x5A) == 0x5A
    assert command(0xA9) not in (None, 0x00, 0xFA, 0xFF)  # no mouse
    io_write(pc, 0x64, 1, 0xD4, 0)
    io_write(pc, 0x60, 1, 0xF2, 0)  # identify: no mouse
    assert io_read(pc, 0x64, 1, 0) & 0x41 == 0x41
    assert io_read(pc, 0x60, 1, 0) == 0xFE


def test_post_code_and_clock_ports() -> None:
    pc = make()
    io_write(pc, 0x80, 1, 0x5A, 0)
    assert (pc.control.post_code, pc.control.post_count) == (0x5A, 1)
    io_write(pc, 0x70, 1, 0x80 | 0x09, 0)
    assert io_read(pc, 0x71, 1, 0) == 0x25
    assert io_read(pc, 0x92, 1, 0) == 0x02


def test_snapshot_is_a_copy() -> None:
    array = new_pc()
    copy = array.copy()
    io_write(array[0], 0x3F8, 1, 65, 10**6)
    assert copy[0].uart.output_count == 0
    assert uart_drain(array[0].uart) == b"A"


def test_reserved_field_names_are_refused() -> None:
    class Bad(Record):
        data: int

    with pytest.raises(ValueError, match="data"):
        record_dtype(Bad)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="needs compiled callbacks")
def test_a_callback_reaches_the_same_record() -> None:
    array = new_pc()

    @cfunc(types.int64(types.CPointer(numba.from_dtype(PC_DTYPE)), types.int64, types.int64))  # type: ignore[untyped-decorator,unused-ignore]
    def on_out(pointer: Any, port: int, value: int) -> int:
        return io_write(carray(pointer, 1)[0], port, 1, value, 0)

    address = ctypes.c_void_p(array.ctypes.data)
    assert on_out.ctypes(address, 0x3F8, 0x21) == IO_OK
    assert uart_drain(array[0].uart) == b"!"


@njit
def _storm(pc: Any, ports: Any, values: Any, sizes: Any, gaps: Any) -> int:
    now = 0
    bad = 0
    for i in range(len(ports)):
        now += gaps[i]
        size = sizes[i]
        if values[i] < 0:
            got = io_read(pc, ports[i], size, now)
            if got < 0 or got >> (8 * size) != 0:
                bad += 1
        else:
            io_write(pc, ports[i], size, values[i], now)
        mmio_write(pc, values[i] & 0xFF0, 4, values[i], now)
        got = mmio_read(pc, ports[i] & 0xFF0, 4, now)
        if got < 0 or got > 0xFFFFFFFF:
            bad += 1
        pc_advance(pc, now)
        if pc_next_deadline(pc, now) < now:
            bad += 1
        vector = pc_acknowledge_interrupt(pc)
        if vector < -1 or vector > 255:
            bad += 1
    return bad


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32))
def test_random_guests_never_get_nonsense(seed: int) -> None:
    """Any access at any time: values fit their size, deadlines never lie in the past."""
    random = np.random.default_rng(seed)
    known = [*range(0x20, 0x22), *range(0x40, 0x44), *range(0x60, 0x65), 0x70, 0x71, 0x80, 0x92]
    known += [0xA0, 0xA1, *range(0x3F8, 0x400), 0x4D0, 0x4D1, 0x604, *range(0xCF8, 0xD00), 0xFFFF]
    n = 100 if numba.config.DISABLE_JIT else 2000
    ports = random.choice(np.array(known, np.int64), n)
    values = random.integers(0, 1 << 32, n) >> random.integers(0, 32, n)
    values = np.where(random.random(n) < 0.4, -1, values)
    sizes = random.choice(np.array([1, 1, 1, 2, 4], np.int64), n)
    gaps = random.integers(0, 1 << 24, n) >> random.integers(0, 24, n)
    pc = make()
    assert _storm(pc, ports, values, sizes, gaps) == 0
