# SPDX-License-Identifier: Apache-2.0
"""The ports by which a guest ends its run or talks to whoever watches it.

Debug exit (0xf4, as QEMU's isa-debug-exit), POST code (0x80), fast reset and A20 (0x92, IBM PS/2
Technical Reference), reset control (0xcf9, Intel PIIX3 datasheet) and the ACPI fixed registers
where QEMU's PC has them: PM1a events (0x600: status, of which none is ever set, then enable) and
PM1a control (0x604), whose SCI_EN always reads as one. Address line A20 is always enabled; its bit
is only remembered. The first request counts: a machine that has been told to end hears no more.
"""

from memvirt.compiled import compiled
from memvirt.state_record import Record, record_dtype

PORT_POST = 0x80
PORT_FAST_RESET = 0x92
PORT_DEBUG_EXIT = 0xF4
PORT_ACPI_EVENTS = 0x600
PORT_ACPI_CONTROL = 0x604
PORT_RESET_CONTROL = 0xCF9
ACPI_SLEEP_ENABLE = 0x2000
ACPI_SCI_ENABLED = 1


class ControlState(Record):
    """State record; see the module docstring."""

    exit_requested: int
    exit_value: int
    reset_requested: int
    poweroff_requested: int
    post_code: int
    post_count: int
    fast_reset: int  # port 0x92
    reset_control: int  # port 0xcf9
    acpi_enable: int  # port 0x602
    acpi_control: int  # port 0x604


CONTROL_DTYPE = record_dtype(ControlState)


@compiled
def control_reset(control: ControlState) -> None:
    """No request outstanding, A20 enabled."""
    control.exit_requested = 0
    control.exit_value = 0
    control.reset_requested = 0
    control.poweroff_requested = 0
    control.post_code = 0
    control.post_count = 0
    control.fast_reset = 0x02
    control.reset_control = 0
    control.acpi_enable = 0
    control.acpi_control = ACPI_SCI_ENABLED


@compiled
def control_stop_requested(control: ControlState) -> int:
    """1 once the guest has asked to exit, reset or power off."""
    wanted = control.exit_requested | control.reset_requested | control.poweroff_requested
    return 1 if wanted != 0 else 0


@compiled
def control_debug_exit(control: ControlState, value: int) -> None:
    """Write port 0xf4, any size."""
    if control_stop_requested(control) == 0:
        control.exit_value = value
        control.exit_requested = 1


@compiled
def control_request_reset(control: ControlState) -> None:
    """A device pulls the reset line."""
    if control_stop_requested(control) == 0:
        control.reset_requested = 1


@compiled
def control_write_fast_reset(control: ControlState, value: int) -> None:
    """Write port 0x92: a rise of bit 0 resets the processor."""
    if value & 1 and control.fast_reset & 1 == 0:
        control_request_reset(control)
    control.fast_reset = value & 0xFF


@compiled
def control_write_reset(control: ControlState, value: int) -> None:
    """Write port 0xcf9: a rise of bit 2 resets the machine."""
    if value & 4 and control.reset_control & 4 == 0:
        control_request_reset(control)
    control.reset_control = value & 0x0A


@compiled
def control_write_acpi(control: ControlState, value: int) -> None:
    """Write port 0x604: SLP_EN (bit 13) powers off, whatever the sleep type."""
    control.acpi_control = (value & 0xFFFF & ~ACPI_SLEEP_ENABLE) | ACPI_SCI_ENABLED
    if value & ACPI_SLEEP_ENABLE and control_stop_requested(control) == 0:
        control.poweroff_requested = 1


@compiled
def control_read_events(control: ControlState, offset: int) -> int:
    """Read a byte of ports 0x600 to 0x603."""
    return control.acpi_enable >> (8 * (offset & 1)) & 0xFF if offset & 2 else 0


@compiled
def control_write_events(control: ControlState, offset: int, value: int) -> None:
    """Write a byte of ports 0x600 to 0x603; writing the status clears bits that are never set."""
    if offset & 2:
        shift = 8 * (offset & 1)
        control.acpi_enable = control.acpi_enable & ~(0xFF << shift) | value << shift
