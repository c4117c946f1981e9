# SPDX-License-Identifier: Apache-2.0
"""8042 keyboard controller with a PS/2 keyboard on its first port and nothing on its second (IBM
PS/2 Technical Reference, "Keyboard and Auxiliary Device Controller" and "Keyboards").

The controller answers every command at once, so that an operating system's probe ends without
waiting; the mouse port fails its test, and bytes sent to it time out. The keyboard's bytes, scan
codes of set 2 and answers to commands, wait in a queue and come one at a time: the next one when
the last has been read, with an edge on IRQ 1 each. The controller translates them to set 1, as long
as the guest leaves that on. Pulsing output line 0 (command 0xfe) is the processor's reset.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Annotated

import numpy as np

from memvirt.compiled import compiled
from memvirt.state_record import Record, record_dtype

STATUS_OUTPUT_FULL = 0x01
STATUS_SYSTEM = 0x04
STATUS_COMMAND = 0x08
STATUS_UNLOCKED = 0x10
STATUS_TIMEOUT = 0x40
COMMAND_KEYBOARD_INTERRUPT = 0x01
COMMAND_KEYBOARD_OFF = 0x10
COMMAND_TRANSLATE = 0x40
OUTPUT_NOT_RESET = 0x01
OUTPUT_A20 = 0x02
NO_COMMAND = 0

KEYBOARD_OK = 0
KEYBOARD_RESET = 1

QUEUE_BYTES = 2048
_ACKNOWLEDGE = 0xFA
_RESEND = 0xFE
_BREAK = 0xF0  # in set 2, before the code of a key that is let go

# Set 2 to set 1, as the controller translates it (Technical Reference, keyboard scan codes). Bytes
# from 0x86 on stay as they are.
_SET_1 = np.frombuffer(
    bytes.fromhex(
        "ff43413f3d3b3c58644442403e0f2959"
        "65382a701d10025a66712c1f1e11035b"
        "672e2d201205045c68392f211413065d"
        "693130232215075e6a7232241608095f"
        "6b332517180b0a606c34352627190c61"
        "6d7328741a0d626e3a361c1b752b6376"
        "55567778797a0e7b7c4f7d4b477e7f6f"
        "5253504c4d480145574e514a37494654"
        "808182415485"
    ),
    np.uint8,
)


class KeyboardState(Record):
    """State record; see the module docstring."""

    command_byte: int
    output_port: int
    awaiting: int  # the command whose data byte is due at port 0x60; 0 = none
    data_byte: int
    data_full: int
    data_timeout: int
    last_was_command: int
    reply: int  # the controller's, while the output buffer is full; with its timeout flag
    reply_timeout: int
    reply_waits: int
    queue: Annotated[MutableSequence[int], np.uint8, QUEUE_BYTES]
    queue_first: int
    queue_count: int
    translating: int  # 0x80 behind a _BREAK
    keyboard_command: int  # the keyboard's, whose data byte is due; 0 = none
    scanning: int  # keys are reported


KEYBOARD_DTYPE = record_dtype(KeyboardState)


@compiled
def keyboard_reset(keyboard: KeyboardState) -> None:
    """State after the firmware's self-test."""
    # Translation and keyboard interrupt on, mouse off, self-test passed.
    keyboard.command_byte = 0x65
    keyboard.output_port = 0xCC | OUTPUT_NOT_RESET | OUTPUT_A20
    keyboard.awaiting = NO_COMMAND
    keyboard.data_byte = 0
    keyboard.data_full = 0
    keyboard.data_timeout = 0
    keyboard.last_was_command = 0
    keyboard.reply_waits = 0
    keyboard.queue_first = 0
    keyboard.queue_count = 0
    keyboard.translating = 0
    keyboard.keyboard_command = NO_COMMAND
    keyboard.scanning = 1


@compiled
def _fill(keyboard: KeyboardState, value: int, timeout: int) -> None:
    keyboard.data_byte = value
    keyboard.data_full = 1
    keyboard.data_timeout = timeout


@compiled
def _reply(keyboard: KeyboardState, value: int, timeout: int) -> None:
    """The controller's own answer: now, or behind the byte that has not been read."""
    if keyboard.data_full != 0:
        keyboard.reply = value
        keyboard.reply_timeout = timeout
        keyboard.reply_waits = 1
    else:
        _fill(keyboard, value, timeout)


@compiled
def _send(keyboard: KeyboardState, value: int) -> None:
    """Queue a byte of the keyboard's."""
    if keyboard.queue_count < QUEUE_BYTES:
        place = (keyboard.queue_first + keyboard.queue_count) % QUEUE_BYTES
        keyboard.queue[place] = value
        keyboard.queue_count += 1


@compiled
def keyboard_refill(keyboard: KeyboardState) -> None:
    """Bring the next byte to the empty output buffer.

    Owed after whatever empties it or adds to the queue; after a read once the interrupt line has
    been seen to fall, or the next byte makes no edge.
    """
    if keyboard.data_full == 0 and keyboard.reply_waits != 0:
        keyboard.reply_waits = 0
        _fill(keyboard, keyboard.reply, keyboard.reply_timeout)
    while (
        keyboard.data_full == 0
        and keyboard.queue_count != 0
        and keyboard.command_byte & COMMAND_KEYBOARD_OFF == 0
    ):
        value = keyboard.queue[keyboard.queue_first] & 0xFF
        keyboard.queue_first = (keyboard.queue_first + 1) % QUEUE_BYTES
        keyboard.queue_count -= 1
        if keyboard.command_byte & COMMAND_TRANSLATE == 0:
            _fill(keyboard, value, 0)
        elif value == _BREAK:
            keyboard.translating = 0x80
        else:
            if value < _SET_1.size:
                value = _SET_1[value] | keyboard.translating
            keyboard.translating = 0
            _fill(keyboard, value, 0)


def keyboard_press(keyboard: KeyboardState, scan_codes: bytes) -> bool:
    """Queue ``scan_codes`` (set 2), all or, where there is no room for all, none.

    False for none: the queue is full, or the guest has switched scanning off.
    """
    if not keyboard.scanning or keyboard.queue_count + len(scan_codes) > QUEUE_BYTES:
        return False
    for code in scan_codes:
        _send(keyboard, code)
    keyboard_refill(keyboard)
    return True


@compiled
def _default(keyboard: KeyboardState, scanning: int) -> None:
    keyboard.scanning = scanning
    keyboard.queue_count = 0
    keyboard.translating = 0


@compiled
def _keyboard_takes(keyboard: KeyboardState, value: int) -> None:
    """A byte for the keyboard: a command, or the data byte of the last one."""
    command = keyboard.keyboard_command
    keyboard.keyboard_command = NO_COMMAND
    if command == 0xF0 and value == 0:
        _send(keyboard, _ACKNOWLEDGE)
        _send(keyboard, 2)  # the set in use
    elif command == 0xF0 and value != 2:
        _send(keyboard, _RESEND)  # set 2 is the only one
    elif command != NO_COMMAND:
        _send(keyboard, _ACKNOWLEDGE)  # lights, repetition: nothing to see
    elif value == 0xED or value == 0xF0 or value == 0xF3:
        keyboard.keyboard_command = value
        _send(keyboard, _ACKNOWLEDGE)
    elif value == 0xEE:
        _send(keyboard, 0xEE)
    elif value == 0xF2:
        _send(keyboard, _ACKNOWLEDGE)
        _send(keyboard, 0xAB)
        _send(keyboard, 0x83)
    elif value == 0xF4 or value == 0xF5 or value == 0xF6 or value == 0xFF:
        _default(keyboard, 0 if value == 0xF5 else 1)
        _send(keyboard, _ACKNOWLEDGE)
        if value == 0xFF:
            _send(keyboard, 0xAA)  # self-test passed
    else:
        _send(keyboard, _RESEND)


@compiled
def keyboard_interrupt(keyboard: KeyboardState) -> int:
    """1 when the controller drives IRQ 1."""
    return keyboard.data_full & keyboard.command_byte & COMMAND_KEYBOARD_INTERRUPT


@compiled
def keyboard_read_data(keyboard: KeyboardState) -> int:
    """Read port 0x60; empties the output buffer. Owed: ``keyboard_refill``."""
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
    """Write port 0x60: a command's data byte, or a byte for the keyboard."""
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
    elif command == 0xD4:
        _reply(keyboard, _RESEND, 1)  # no mouse
    else:
        keyboard.command_byte &= ~COMMAND_KEYBOARD_OFF  # the line to the keyboard is opened
        _keyboard_takes(keyboard, value)
    keyboard_refill(keyboard)
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
    keyboard_refill(keyboard)
    return KEYBOARD_OK
