# SPDX-License-Identifier: Apache-2.0
"""The virtual PC: every device in one record, its port map, its interrupt wiring, its clock.

The run loop (compiled or not) owes this module four things: ``io_read``/``io_write`` for each IN
and OUT, ``mmio_read``/``mmio_write`` for each access to the local APIC's page and
``io_apic_read``/``pc_io_apic_write`` for the I/O APIC's, ``pc_advance`` whenever
virtual time reaches ``pc_next_deadline``, and, before entering the guest with interrupts enabled,
``pc_acknowledge_interrupt`` if ``pc_interrupt_pending``. All of them take element 0 of the array
made by ``new_pc`` (in a ``numba.cfunc``: ``carray(pointer, 1, PC_DTYPE)[0]``). ``now`` is virtual
time in nanoseconds and must never go backwards.
"""

from collections.abc import Sequence

from memvirt.compiled import compiled
from memvirt.platform.cmos import (
    DEFAULT_EPOCH,
    CmosState,
    cmos_advance,
    cmos_configure,
    cmos_interrupt,
    cmos_next_deadline,
)
from memvirt.platform.control import ControlState, control_reset
from memvirt.platform.fw_cfg import FwCfgState
from memvirt.platform.ioapic import (
    TIMER_PIN,
    IoApicState,
    io_apic_end_of_interrupt,
    io_apic_reset,
    io_apic_set_line,
    io_apic_write,
)
from memvirt.platform.keyboard import (
    KeyboardState,
    keyboard_interrupt,
    keyboard_press,
    keyboard_reset,
)
from memvirt.platform.lapic import (
    NO_VECTOR,
    REG_EOI,
    LapicState,
    lapic_accepts_extint,
    lapic_acknowledge,
    lapic_advance,
    lapic_end_of_interrupt,
    lapic_next_deadline,
    lapic_pending,
    lapic_read,
    lapic_reset,
    lapic_write,
)
from memvirt.platform.pic import (
    PicState,
    pic_acknowledge,
    pic_pending,
    pic_reset,
    pic_set_irq,
)
from memvirt.platform.pit import PitState, pit_advance, pit_next_deadline, pit_reset
from memvirt.platform.scan_codes import scan_codes
from memvirt.platform.uart import UartState, uart_interrupt, uart_receive, uart_reset
from memvirt.platform.vga import VgaState, vga_reset
from memvirt.state_record import Record, new_record, record_dtype

IRQ_TIMER = 0
IRQ_KEYBOARD = 1
IRQ_SERIAL = 4
IRQ_CLOCK = 8


class PcState(Record):
    """State record; see the module docstring."""

    unknown_reads: int  # port reads no device answered
    unknown_writes: int
    last_unknown_port: int
    uart: UartState
    pic: PicState
    pit: PitState
    cmos: CmosState
    lapic: LapicState
    keyboard: KeyboardState
    control: ControlState
    vga: VgaState
    io_apic: IoApicState
    fw_cfg: FwCfgState


PC_DTYPE = record_dtype(PcState)
Pc = Sequence[PcState]  # a NumPy array of shape (1,): kernels take its element


def new_pc(memory_bytes: int = 128 << 20, base_epoch: int = DEFAULT_EPOCH) -> Pc:
    """A PC at virtual time 0 as firmware hands it to a boot loader: array of shape (1,).

    ``base_epoch`` is what the real-time clock shows at time 0, in seconds since 1970 UTC.
    """
    pc: Pc = new_record(PC_DTYPE)
    cmos_configure(pc[0].cmos, memory_bytes, base_epoch)
    _reset_devices(pc[0])
    return pc


@compiled
def _reset_devices(pc: PcState) -> None:
    uart_reset(pc.uart)
    pic_reset(pc.pic)
    pit_reset(pc.pit)
    lapic_reset(pc.lapic)
    keyboard_reset(pc.keyboard)
    control_reset(pc.control)
    vga_reset(pc.vga)
    io_apic_reset(pc.io_apic)


@compiled
def set_irq(pc: PcState, irq: int, level: int) -> None:
    """Drive ISA interrupt line ``irq``, which both interrupt controllers see, to 0 or 1."""
    pic_set_irq(pc.pic, irq, level)
    pin = TIMER_PIN if irq == IRQ_TIMER else irq
    io_apic_set_line(pc.io_apic, pc.lapic, pin, level)


@compiled
def update_interrupt_lines(pc: PcState) -> None:
    """Drive the level-like IRQ lines from their devices. Owed after any change to a device."""
    set_irq(pc, IRQ_SERIAL, uart_interrupt(pc.uart))
    set_irq(pc, IRQ_KEYBOARD, keyboard_interrupt(pc.keyboard))
    set_irq(pc, IRQ_CLOCK, cmos_interrupt(pc.cmos))


@compiled
def pc_advance(pc: PcState, now: int) -> None:
    """Fire every timer due up to ``now``. Edges missed meanwhile are one interrupt a line."""
    if pit_advance(pc.pit, now) > 0:
        # The output is high again long before the guest looks; a fall-and-rise is the edge.
        set_irq(pc, IRQ_TIMER, 0)
        set_irq(pc, IRQ_TIMER, 1)
    cmos_advance(pc.cmos, now)
    lapic_advance(pc.lapic, now)
    update_interrupt_lines(pc)


@compiled
def pc_next_deadline(pc: PcState, now: int) -> int:
    """Virtual ns, at least ``now``, at which ``pc_advance`` next has work; ``NEVER`` if none."""
    deadline = min(pit_next_deadline(pc.pit), lapic_next_deadline(pc.lapic))
    return max(min(deadline, cmos_next_deadline(pc.cmos)), now)


@compiled
def pc_interrupt_pending(pc: PcState) -> bool:
    """True when the processor's interrupt input is asserted."""
    if lapic_pending(pc.lapic) != NO_VECTOR:
        return True
    return lapic_accepts_extint(pc.lapic) != 0 and pic_pending(pc.pic) != 0


@compiled
def pc_acknowledge_interrupt(pc: PcState) -> int:
    """Take the pending interrupt: its vector, or -1. The local APIC goes before the 8259A."""
    if lapic_pending(pc.lapic) != NO_VECTOR:
        return lapic_acknowledge(pc.lapic)
    if lapic_accepts_extint(pc.lapic) != 0 and pic_pending(pc.pic) != 0:
        return pic_acknowledge(pc.pic)
    return NO_VECTOR


@compiled
def mmio_read(pc: PcState, offset: int, size: int, now: int) -> int:
    """Read 1, 2, 4 or 8 bytes of the local APIC's page; only aligned registers exist."""
    lapic_advance(pc.lapic, now)
    value = lapic_read(pc.lapic, offset & 0xFFC, now) >> (8 * (offset & 3))
    return value if size >= 4 else value & ((1 << (8 * size)) - 1)


@compiled
def mmio_write(pc: PcState, offset: int, size: int, value: int, now: int) -> None:
    """Write the local APIC's page; as on a processor, only aligned 32-bit stores count."""
    if size != 4 or offset & 3:
        return
    lapic_advance(pc.lapic, now)
    if offset & 0xFFF == REG_EOI:
        vector = lapic_end_of_interrupt(pc.lapic)
        if vector != NO_VECTOR:
            io_apic_end_of_interrupt(pc.io_apic, pc.lapic, vector)
        return
    lapic_write(pc.lapic, offset & 0xFFF, value, now)


@compiled
def pc_io_apic_write(pc: PcState, offset: int, value: int) -> None:
    """Write the I/O APIC's page."""
    io_apic_write(pc.io_apic, pc.lapic, offset & 0xFFF, value)


def pc_serial_input(pc: PcState, data: bytes) -> int:
    """Type ``data`` into COM1 from outside; returns the bytes accepted and drives IRQ 4."""
    accepted = uart_receive(pc.uart, data)
    update_interrupt_lines(pc)
    return accepted


def pc_keyboard_input(pc: PcState, typed: bytes) -> int:
    """Press the keys that a terminal would send as ``typed``; drives IRQ 1.

    Returns how many bytes of it were taken: less than all if the guest does not read its keyboard.
    """
    taken = 0
    for key, codes in scan_codes(typed):
        if codes and not keyboard_press(pc.keyboard, codes):
            break
        taken += len(key)
    update_interrupt_lines(pc)
    return taken
