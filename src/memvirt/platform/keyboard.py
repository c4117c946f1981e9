# SPDX-License-Identifier: Apache-2.0
"""8042 keyboard controller with nothing plugged in (IBM PS/2 Technical Reference, "Keyboard and
Auxiliary Device Controller").

It answers every controller command at once, so that an operating system's probe ends without
waiting: the keyboard port works but every byte sent to it times out, and the mouse port fails its
test. Pulsing output line 0 (command 0xfe) is the processor's reset.
"""

from memvirt.compiled import compiled
from memvirt.state_record import Record, record_dtype

STATUS_OUTPUT_FULL = 0x01
STATUS_SYSTEM = 0x04
STATUS_COMMAND = 0x08
STATUS_UNLOCKED = 0x10
STATUS_TIMEOUT = 0x40
COMMAND_KEYBOARD_INTERRUPT = 0x01
OUTPUT_NOT_RESET = 0x01
OUTPUT_A20 = 0x02
NO_COMMAND = 0

KEYBOARD_OK = 0
KEYBOARD_RESET = 1


class KeyboardState(Record):
    """State record; see the module docstring."""

    command_byte: int
    output_port: int
    awaiting: int  # the command whose data byte is due at port 0x60; 0 = none
    data_byte: int
    data_full: int
    data_timeout: int
    last_was_command: int


KEYBOARD_DTYPE = record_dtype(KeyboardState)


@compiled
def keyboard_reset(keyboard: KeyboardState) -> None:
    """State after the firmware's self-test."""
    keyboard.command_byte = 0x64  # translation on, mouse off, self-test passed, no interrupts
    keyboard.output_port = 0xCC | OUTPUT_NOT_RESET | OUTPUT_A20
    keyboard.awaiting = NO_COMMAND
    keyboard.data_byte = 0
    keyboard.data_full = 0
    keyboard.data_timeout = 0
    keyboard.last_was_command = 0


@compiled
def _reply(keyboard: KeyboardState, value: int, timeout: int) -> None:
    keyboard.data_byte = value
    keyboard.data_full = 1
    keyboard.data_timeout = timeout


@compiled
def keyboard_interrupt(keyboard: KeyboardState) -> int:
    """1 when the controller drives IRQ 1."""
    return keyboard.data_full & keyboard.command_byte & COMMAND_KEYBOARD_INTERRUPT


@compiled
def keyboard_read_data(keyboard: KeyboardState) -> int:
    """Read port 0x60; empties the output buffer."""
    keyboard.data_full = 0
    keyboard.data_timeout = 0
    return keyboard.data_byte


@compiled
def keyboard_read_status(keyboard: KeyboardState) -> int:
    """Read port 0x64; the input buffer is always empty."""
    return (
        STATUS_UNLOCKED
        | (keyboard.command_byte & STATUS_SYSTEM)
        | (STATUS_COMMAND if keyboard.last_was_command != 0 else 0)
        | (STATUS_OUTPUT_FULL if keyboard.data_full != 0 else 0)
        | (STATUS_TIMEOUT if keyboard.data_timeout != 0 else 0)
    )


@compiled
def _write_output_port(keyboard: KeyboardState, value: int) -> int:
    keyboard.output_port = value
    return KEYBOARD_OK if value & OUTPUT_NOT_RESET else KEYBOARD_RESET


@compiled
def keyboard_write_data(keyboard: KeyboardState, value: int) -> int:
    """Write port 0x60: a command's data byte, or a byte for the absent keyboard."""
    value &= 0xFF
    keyboard.last_was_command = 0
    command = keyboard.awaiting
    keyboard.awaiting = NO_COMMAND
    if command == 0x60:
        keyboard.command_byte = value
    elif command == 0xD1:
        return _write_output_port(keyboard, value)
    elif command == 0xD2 or command == 0xD3:
        _reply(keyboard, value, 0)
    elif command == NO_COMMAND or command == 0xD4:
        _reply(keyboard, 0xFE, 1)
    return KEYBOARD_OK


@compiled
def keyboard_write_command(keyboard: KeyboardState, value: int) -> int:
    """Write port 0x64. ``KEYBOARD_RESET``: the guest asked for a processor reset."""
    value &= 0xFF
    keyboard.last_was_command = 1
    keyboard.awaiting = NO_COMMAND
    if value == 0x60 or value == 0xD1 or value == 0xD2 or value == 0xD3 or value == 0xD4:
        keyboard.awaiting = value
    elif value == 0x20:
        _reply(keyboard, keyboard.command_byte, 0)
    elif value == 0xAA:
        keyboard.command_byte |= STATUS_SYSTEM
        _reply(keyboard, 0x55, 0)
    elif value == 0xAB:
        _reply(keyboard, 0x00, 0)
    elif value == 0xA9:
        _reply(keyboard, 0x01, 0)  # mouse clock line stuck low
    elif value == 0xA7 or value == 0xA8:
        keyboard.command_byte = keyboard.command_byte & ~0x20 | (0x20 if value == 0xA7 else 0)
    elif value == 0xAD or value == 0xAE:
        keyboard.command_byte = keyboard.command_byte & ~0x10 | (0x10 if value == 0xAD else 0)
    elif value == 0xC0:
        _reply(keyboard, 0xBF, 0)
    elif value == 0xD0:
        _reply(keyboard, keyboard.output_port, 0)
    elif value == 0xDD or value == 0xDF:
        keyboard.output_port = keyboard.output_port & ~OUTPUT_A20 | (value & OUTPUT_A20)
    elif value & 0xF1 == 0xF0:
        return KEYBOARD_RESET  # pulse output bits whose command bit is 0; bit 0 is reset
    return KEYBOARD_OK
