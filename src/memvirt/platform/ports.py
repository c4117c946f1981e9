# SPDX-License-Identifier: Apache-2.0
"""The PC's I/O port map: which device answers IN and OUT.

Devices are eight bits wide; a wider access is one access per consecutive port, low byte first, as
the ISA bus splits it. Exceptions are the ports whose register really is wider: debug exit, ACPI
control, the selector of fw_cfg, and PCI configuration (no PCI bus: reads give all ones).
"""

from memvirt.compiled import compiled
from memvirt.platform.cmos import cmos_read, cmos_write
from memvirt.platform.control import (
    PORT_ACPI_CONTROL,
    PORT_ACPI_EVENTS,
    PORT_DEBUG_EXIT,
    PORT_FAST_RESET,
    PORT_POST,
    PORT_RESET_CONTROL,
    control_debug_exit,
    control_read_events,
    control_request_reset,
    control_stop_requested,
    control_write_acpi,
    control_write_events,
    control_write_fast_reset,
    control_write_reset,
)
from memvirt.platform.fw_cfg import (
    PORT_FW_CFG_DATA,
    PORT_FW_CFG_SELECT,
    fw_cfg_read,
    fw_cfg_select,
)
from memvirt.platform.keyboard import (
    KEYBOARD_RESET,
    keyboard_read_data,
    keyboard_read_status,
    keyboard_refill,
    keyboard_write_command,
    keyboard_write_data,
)
from memvirt.platform.pc import IRQ_TIMER, PcState, pc_advance, set_irq, update_interrupt_lines
from memvirt.platform.pic import (
    pic_read,
    pic_read_edge_level,
    pic_write,
    pic_write_edge_level,
)
from memvirt.platform.pit import pit_read, pit_read_61, pit_write, pit_write_61
from memvirt.platform.uart import (
    LCR_DIVISOR_LATCH,
    MCR_LOOP,
    RING_SIZE,
    uart_read,
    uart_write,
)
from memvirt.platform.vga import vga_has_port, vga_read, vga_write

IO_OK = 0
IO_DRAIN_SERIAL_AND_RETRY = 1
"""The serial output ring is full and nothing was written: drain it, execute the OUT again."""
IO_STOP = 2
"""The guest asked to exit, reset or power off: see ``pc.control``."""

IO_BACKDOOR = 3
"""An IN with the backdoor's magic number in EAX; Python completes it (``platform.backdoor``)."""
IO_BALLOON = 4
"""An IN with the balloon's magic number in EAX; Python completes it (``platform.balloon``)."""

PORT_PIC_MASTER = 0x20
PORT_PIC_SLAVE = 0xA0
PORT_PIT = 0x40
PORT_KEYBOARD_DATA = 0x60
PORT_SYSTEM_CONTROL = 0x61
PORT_KEYBOARD_COMMAND = 0x64
PORT_CMOS_INDEX = 0x70
PORT_CMOS_DATA = 0x71
PORT_COM1 = 0x3F8
PORT_EDGE_LEVEL = 0x4D0
PORT_PCI_ADDRESS = 0xCF8
PORT_PCI_DATA = 0xCFC
PORT_BACKDOOR = 0x5658
BACKDOOR_MAGIC = 0x564D5868  # "VMXh"
PORT_BALLOON = 0x5670
BALLOON_MAGIC = 0x456C6D6F


@compiled
def io_call(port: int, size: int, eax: int) -> int:
    """IO_BACKDOOR or IO_BALLOON if this IN is a call to the hypervisor, else IO_OK.

    It is one only as a 32-bit IN with the port's magic number in EAX; without it nothing is there.
    """
    if size == 4 and port == PORT_BACKDOOR and eax == BACKDOOR_MAGIC:
        return IO_BACKDOOR
    if size == 4 and port == PORT_BALLOON and eax == BALLOON_MAGIC:
        return IO_BALLOON
    return IO_OK


@compiled
def _unknown_read(pc: PcState, port: int) -> int:
    pc.unknown_reads += 1
    pc.last_unknown_port = port
    return 0xFF


@compiled
def _read_system_byte(pc: PcState, port: int, now: int) -> int:
    """Ports below 0x100: the AT's system board."""
    if port & 0x7E == PORT_PIC_MASTER:
        return pic_read(pc.pic, port >> 7, port & 1)
    if PORT_PIT <= port < PORT_PIT + 4:
        return pit_read(pc.pit, port & 3, now)
    if port == PORT_SYSTEM_CONTROL:
        return pit_read_61(pc.pit, now)
    if port == PORT_KEYBOARD_DATA:
        value = keyboard_read_data(pc.keyboard)
        update_interrupt_lines(pc)  # IRQ 1 falls; the next byte raises it again
        keyboard_refill(pc.keyboard)
        return value
    if port == PORT_KEYBOARD_COMMAND:
        return keyboard_read_status(pc.keyboard)
    if port == PORT_CMOS_INDEX:
        return 0xFF  # write-only
    if port == PORT_CMOS_DATA:
        return cmos_read(pc.cmos, now)
    if port == PORT_POST:
        return pc.control.post_code
    if port == PORT_FAST_RESET:
        return pc.control.fast_reset
    return _unknown_read(pc, port)


@compiled
def _read_byte(pc: PcState, port: int, now: int) -> int:
    if port < 0x100:
        return _read_system_byte(pc, port, now)
    if PORT_COM1 <= port < PORT_COM1 + 8:
        return uart_read(pc.uart, port & 7)
    if port & ~1 == PORT_EDGE_LEVEL:
        return pic_read_edge_level(pc.pic, port & 1)
    if port == PORT_FW_CFG_DATA:
        return fw_cfg_read(pc.fw_cfg)
    if port == PORT_RESET_CONTROL:
        return pc.control.reset_control
    if PORT_ACPI_EVENTS <= port < PORT_ACPI_CONTROL:
        return control_read_events(pc.control, port - PORT_ACPI_EVENTS)
    if PORT_PCI_ADDRESS <= port < PORT_PCI_DATA + 4:
        return 0xFF  # no PCI bus
    if vga_has_port(port):
        return vga_read(pc.vga, port, now)
    return _unknown_read(pc, port)


@compiled
def io_read(pc: PcState, port: int, size: int, now: int) -> int:
    """Execute IN of ``size`` 1, 2 or 4 bytes: the value, zero-extended."""
    pc_advance(pc, now)
    if port == PORT_ACPI_CONTROL and size >= 2:
        return pc.control.acpi_control
    if port == PORT_PCI_ADDRESS and size == 4:
        return 0xFFFF_FFFF
    value = 0
    for i in range(size):
        value |= _read_byte(pc, (port + i) & 0xFFFF, now) << (8 * i)
    update_interrupt_lines(pc)
    return value


@compiled
def _unknown_write(pc: PcState, port: int) -> None:
    pc.unknown_writes += 1
    pc.last_unknown_port = port


@compiled
def _write_system_byte(pc: PcState, port: int, value: int, now: int) -> None:
    """Ports below 0x100: the AT's system board."""
    if port & 0x7E == PORT_PIC_MASTER:
        pic_write(pc.pic, port >> 7, port & 1, value)
    elif PORT_PIT <= port < PORT_PIT + 4:
        pit_write(pc.pit, port & 3, value, now)
        if pc.pit.channels[0].loaded == 0 and pc.pit.channels[0].mode == 0:
            set_irq(pc, IRQ_TIMER, 0)
    elif port == PORT_SYSTEM_CONTROL:
        pit_write_61(pc.pit, value, now)
    elif port == PORT_KEYBOARD_DATA:
        if keyboard_write_data(pc.keyboard, value) == KEYBOARD_RESET:
            control_request_reset(pc.control)
    elif port == PORT_KEYBOARD_COMMAND:
        if keyboard_write_command(pc.keyboard, value) == KEYBOARD_RESET:
            control_request_reset(pc.control)
    elif port == PORT_CMOS_INDEX:
        pc.cmos.index = value & 0x7F
    elif port == PORT_CMOS_DATA:
        cmos_write(pc.cmos, value, now)
    elif port == PORT_POST:
        pc.control.post_code = value
        pc.control.post_count += 1
    elif port == PORT_FAST_RESET:
        control_write_fast_reset(pc.control, value)
    else:
        _unknown_write(pc, port)


@compiled
def _write_byte(pc: PcState, port: int, value: int, now: int) -> None:
    if port < 0x100:
        _write_system_byte(pc, port, value, now)
    elif PORT_COM1 <= port < PORT_COM1 + 8:
        uart_write(pc.uart, port & 7, value)
    elif port & ~1 == PORT_EDGE_LEVEL:
        pic_write_edge_level(pc.pic, port & 1, value)
    elif port == PORT_RESET_CONTROL:
        control_write_reset(pc.control, value)
    elif PORT_ACPI_EVENTS <= port < PORT_ACPI_CONTROL:
        control_write_events(pc.control, port - PORT_ACPI_EVENTS, value)
    elif PORT_PCI_ADDRESS <= port < PORT_PCI_DATA + 4 or port == PORT_FW_CFG_DATA:
        return
    elif vga_has_port(port):
        vga_write(pc.vga, port, value)
    else:
        _unknown_write(pc, port)


@compiled
def _serial_is_full(pc: PcState, port: int, size: int) -> int:
    """1 when this OUT includes a byte the output ring has no room for."""
    if not port <= PORT_COM1 < port + size or pc.uart.output_count < RING_SIZE:
        return 0
    if pc.uart.line_control & LCR_DIVISOR_LATCH or pc.uart.modem_control & MCR_LOOP:
        return 0
    return 1


@compiled
def io_write(pc: PcState, port: int, size: int, value: int, now: int) -> int:
    """Execute OUT of ``size`` 1, 2 or 4 bytes; returns one of the ``IO_`` statuses above."""
    if _serial_is_full(pc, port, size) != 0:
        return IO_DRAIN_SERIAL_AND_RETRY
    pc_advance(pc, now)
    if port == PORT_DEBUG_EXIT:
        control_debug_exit(pc.control, value & ((1 << (8 * size)) - 1))
    elif port == PORT_ACPI_CONTROL and size >= 2:
        control_write_acpi(pc.control, value)
    elif port == PORT_FW_CFG_SELECT and size == 2:
        fw_cfg_select(pc.fw_cfg, value & 0xFFFF)
    elif port == PORT_PCI_ADDRESS and size == 4:
        pass  # the address register is 32 bits wide: this is not a write to port 0xcf9
    else:
        for i in range(size):
            _write_byte(pc, (port + i) & 0xFFFF, value >> (8 * i) & 0xFF, now)
    update_interrupt_lines(pc)
    return IO_STOP if control_stop_requested(pc.control) != 0 else IO_OK
