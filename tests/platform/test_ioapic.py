# SPDX-License-Identifier: Apache-2.0
"""The I/O APIC, driven as its datasheet describes, and the MP tables that announce it."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from memvirt.platform import ioapic as io
from memvirt.platform import lapic as local
from memvirt.platform.boot.firmware import MP_TABLES, firmware_segments
from memvirt.platform.pc import (
    mmio_write,
    new_pc,
    pc_acknowledge_interrupt,
    pc_interrupt_pending,
    pc_io_apic_write,
    set_irq,
)

LEVEL, MASKED, LOGICAL = 1 << 15, 1 << 16, 1 << 11


def make() -> Any:
    return new_pc()[0]


def write(pc: Any, index: int, value: int) -> None:
    pc_io_apic_write(pc, io.OFFSET_SELECT, index)
    pc_io_apic_write(pc, io.OFFSET_WINDOW, value)


def read(pc: Any, index: int) -> int:
    pc_io_apic_write(pc, io.OFFSET_SELECT, index)
    return int(io.io_apic_read(pc.io_apic, io.OFFSET_WINDOW))


def entry(pc: Any, pin: int, low: int, destination: int = 0) -> None:
    write(pc, 0x11 + 2 * pin, destination << 24)
    write(pc, 0x10 + 2 * pin, low)


def end_of_interrupt(pc: Any) -> None:
    mmio_write(pc, local.REG_EOI, 4, 0, 0)


def test_registers() -> None:
    pc = make()
    assert read(pc, 0) == io.IO_APIC_ID << 24
    assert read(pc, 1) == 0x0017_0011
    assert read(pc, 0x10 + 2 * 23) == MASKED
    assert read(pc, 0x40) == 0
    write(pc, 0, 0xFF00_0000)
    assert read(pc, 0) == 0x0F00_0000
    write(pc, 0x31, 0xAB00_0000)
    write(pc, 0x30, 0xFFFF_FFFF)
    assert read(pc, 0x31) == 0xAB00_0000
    assert read(pc, 0x30) == 0x1_AFFF  # delivery status and remote IRR are read-only
    write(pc, 0x40, 1)  # no such entry
    assert int(io.io_apic_read(pc.io_apic, 0x20)) == 0


def test_an_edge_is_one_interrupt() -> None:
    pc = make()
    entry(pc, 4, 0x34)
    set_irq(pc, 4, 1)
    assert pc_acknowledge_interrupt(pc) == 0x34
    end_of_interrupt(pc)
    set_irq(pc, 4, 1)
    assert not pc_interrupt_pending(pc)
    set_irq(pc, 4, 0)
    set_irq(pc, 4, 1)
    assert pc_acknowledge_interrupt(pc) == 0x34


def test_an_edge_on_a_masked_input_is_lost() -> None:
    pc = make()
    entry(pc, 4, 0x34 | MASKED)
    set_irq(pc, 4, 1)
    entry(pc, 4, 0x34)
    assert not pc_interrupt_pending(pc)


def test_the_timer_is_wired_to_input_2() -> None:
    pc = make()
    entry(pc, 0, 0x30)
    entry(pc, 2, 0x32)
    set_irq(pc, 0, 1)
    assert pc_acknowledge_interrupt(pc) == 0x32
    assert not pc_interrupt_pending(pc)


def test_a_level_comes_again_until_it_falls() -> None:
    pc = make()
    entry(pc, 4, 0x34 | LEVEL | MASKED)
    set_irq(pc, 4, 1)
    assert not pc_interrupt_pending(pc)
    entry(pc, 4, 0x34 | LEVEL)
    for _ in range(2):
        assert pc_acknowledge_interrupt(pc) == 0x34
        assert read(pc, 0x18) == 0x34 | LEVEL | io.REMOTE_IRR
        assert not pc_interrupt_pending(pc)
        end_of_interrupt(pc)
    assert pc_acknowledge_interrupt(pc) == 0x34
    set_irq(pc, 4, 0)
    end_of_interrupt(pc)
    assert read(pc, 0x18) == 0x34 | LEVEL
    assert not pc_interrupt_pending(pc)


def test_made_edge_triggered_it_waits_for_no_eoi() -> None:
    """How kernels end an interrupt without the local APIC's message."""
    pc = make()
    entry(pc, 4, 0x34 | LEVEL)
    set_irq(pc, 4, 1)
    write(pc, 0x18, 0x34 | MASKED)
    assert read(pc, 0x18) == 0x34 | MASKED


@pytest.mark.parametrize(
    ("low", "destination", "arrives"),
    [
        (0x34, 0, True),
        (0x34, 3, False),
        (0x34, 0xFF, True),
        (0x34 | LOGICAL, 0x01, True),
        (0x34 | LOGICAL, 0x02, False),
        (0x34 | 1 << 8, 0, True),  # lowest priority
        (0x34 | 5 << 8, 0, False),  # INIT
        (0x34 | 7 << 8, 0, False),  # ExtINT: the 8259A uses LINT0
    ],
)
def test_destinations_and_modes(low: int, destination: int, arrives: bool) -> None:
    pc = make()
    mmio_write(pc, local.REG_LDR, 4, 0x0100_0000, 0)
    entry(pc, 7, low, destination)
    set_irq(pc, 7, 1)
    assert bool(pc_interrupt_pending(pc)) == arrives


def test_an_nmi_goes_past_the_vectors() -> None:
    pc = make()
    entry(pc, 7, 4 << 8)
    set_irq(pc, 7, 1)
    assert pc.lapic.nmi_pending == 1
    assert not pc_interrupt_pending(pc)


def test_a_disabled_local_apic_accepts_nothing() -> None:
    pc = make()
    mmio_write(pc, local.REG_SVR, 4, 0xFF, 0)
    entry(pc, 7, 0x34)
    set_irq(pc, 7, 1)
    assert not pc_interrupt_pending(pc)


def test_both_controllers_see_a_line() -> None:
    pc = make()
    set_irq(pc, 4, 1)
    assert pc.pic.chips[0].request == 1 << 4
    assert pc.io_apic.lines == 1 << 4


def test_mp_tables_as_a_kernel_reads_them() -> None:
    """The floating pointer within the first kilobyte of the EBDA, and every entry by its type."""
    segment = next(s for s in firmware_segments() if s.gpa == MP_TABLES)
    assert MP_TABLES % 16 == 0
    assert segment.end <= 0x9FC00 + 1024
    pointer, table = segment.data[:16], segment.data[16:]
    assert pointer[:4] == b"_MP_"
    assert sum(pointer) & 0xFF == 0
    assert struct.unpack_from("<IB", pointer, 4) == (MP_TABLES + 16, 1)
    assert table[:4] == b"PCMP"
    assert sum(table) & 0xFF == 0
    length, count, lapic = struct.unpack_from("<4xH28xHI", table)
    assert (length, lapic) == (len(table), local.LAPIC_BASE)
    offset, interrupts, kinds = 44, {}, []
    for _ in range(count):
        kind = table[offset]
        kinds.append(kind)
        if kind == 2:
            assert struct.unpack_from("<BBBI", table, offset + 1) == (1, 0x11, 1, io.IO_APIC_BASE)
        if kind == 3:
            assert table[offset + 6] == io.IO_APIC_ID
            interrupts[table[offset + 5]] = table[offset + 7]
        offset += 20 if kind == 0 else 8
    assert offset == len(table)
    assert (kinds.count(0), kinds.count(1), kinds.count(2), kinds.count(4)) == (1, 1, 1, 2)
    assert interrupts == {0: 2, 1: 1} | {irq: irq for irq in range(3, 16)}
