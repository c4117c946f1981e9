# SPDX-License-Identifier: Apache-2.0
"""The VGA's registers in text mode (IBM, "PS/2 Hardware Interface Technical Reference: Video
Subsystems", 1992).

Its memory is the guest's own, at gPA 0xa0000 to 0xbffff: nothing happens when the guest prints, and
whoever wants to see the screen reads that memory while the processor stands still
(``platform.text_screen``). So planes, fonts and graphics modes do not exist. The palette is the one
the BIOS loads: writes to the DAC go nowhere.
"""

from collections.abc import MutableSequence
from typing import Annotated

import numpy as np

from memvirt.compiled import compiled
from memvirt.state_record import Record, record_dtype

PORT_VGA_FIRST, PORT_VGA_LAST = 0x3C0, 0x3DA
PORT_ATTRIBUTE = 0x3C0  # index and data in turn
PORT_ATTRIBUTE_DATA = 0x3C1
PORT_MISCELLANEOUS_WRITE = 0x3C2
PORT_SEQUENCER = 0x3C4  # index; data at the next port
PORT_DAC_FIRST, PORT_DAC_LAST = 0x3C6, 0x3C9
PORT_MISCELLANEOUS_READ = 0x3CC
PORT_GRAPHICS = 0x3CE
PORT_CRTC = 0x3D4
PORT_STATUS = 0x3DA

CRTC_REGISTERS, ATTRIBUTE_REGISTERS = 25, 21
GRAPHICS_REGISTERS, SEQUENCER_REGISTERS = 9, 5
CRTC_COLUMNS, CRTC_OVERFLOW, CRTC_CELL_HEIGHT = 0x01, 0x07, 0x09
CRTC_CURSOR_START, CRTC_CURSOR_END = 0x0A, 0x0B
CRTC_START_HIGH, CRTC_START_LOW = 0x0C, 0x0D
CRTC_CURSOR_HIGH, CRTC_CURSOR_LOW = 0x0E, 0x0F
CRTC_RETRACE_END, CRTC_LINES, CRTC_OFFSET = 0x11, 0x12, 0x13
ATTRIBUTE_MODE = 0x10
GRAPHICS_MISCELLANEOUS = 0x06
_PROTECT = 0x80  # of CRTC_RETRACE_END: registers 0 to 7 are read-only
_LINE_COMPARE_HIGH = 0x10  # of CRTC_OVERFLOW: writable all the same

# Mode 3 as the BIOS sets it: 80 x 25 cells of 9 x 16 dots, colour.
_CRTC_MODE_3 = np.frombuffer(
    bytes.fromhex("5f4f50825581bf1f004f0d0e000000009c8e8f281f96b9a3ff"), np.uint8
).astype(np.int64)
_ATTRIBUTE_MODE_3 = np.frombuffer(
    bytes.fromhex("000102030405140738393a3b3c3d3e3f0c000f0800"), np.uint8
).astype(np.int64)
_GRAPHICS_MODE_3 = np.frombuffer(bytes.fromhex("0000000000100e00ff"), np.uint8).astype(np.int64)
_SEQUENCER_MODE_3 = np.frombuffer(bytes.fromhex("0300030002"), np.uint8).astype(np.int64)
_MISCELLANEOUS_MODE_3 = 0x67

# Timing of mode 3: 449 lines of 900 dots at 28.322 MHz; 400 of them, 720 dots each, are shown.
_LINE_NS = 31_778
_LINES, _SHOWN_LINES = 449, 400
_RETRACE_FIRST, _RETRACE_LAST = 412, 413
_SHOWN_LINE_NS = 25_422
STATUS_BLANK, STATUS_VERTICAL_RETRACE = 0x01, 0x08


class VgaState(Record):
    """State record; see the module docstring. Registers are bytes, by their index."""

    crtc_index: int
    attribute_index: int
    attribute_wants_data: int  # the flip-flop: the next write to port 0x3c0 is data
    graphics_index: int
    sequencer_index: int
    miscellaneous: int
    crtc: Annotated[MutableSequence[int], np.int64, CRTC_REGISTERS]
    attribute: Annotated[MutableSequence[int], np.int64, ATTRIBUTE_REGISTERS]
    graphics: Annotated[MutableSequence[int], np.int64, GRAPHICS_REGISTERS]
    sequencer: Annotated[MutableSequence[int], np.int64, SEQUENCER_REGISTERS]


VGA_DTYPE = record_dtype(VgaState)


@compiled
def vga_reset(vga: VgaState) -> None:
    """Mode 3, as a BIOS leaves it, with the cursor at the top left."""
    vga.crtc_index = vga.attribute_index = vga.attribute_wants_data = 0
    vga.graphics_index = vga.sequencer_index = 0
    vga.miscellaneous = _MISCELLANEOUS_MODE_3
    for i in range(CRTC_REGISTERS):
        vga.crtc[i] = _CRTC_MODE_3[i]
    for i in range(ATTRIBUTE_REGISTERS):
        vga.attribute[i] = _ATTRIBUTE_MODE_3[i]
    for i in range(GRAPHICS_REGISTERS):
        vga.graphics[i] = _GRAPHICS_MODE_3[i]
    for i in range(SEQUENCER_REGISTERS):
        vga.sequencer[i] = _SEQUENCER_MODE_3[i]


@compiled
def vga_has_port(port: int) -> bool:
    """True if a colour VGA decodes ``port``."""
    if not PORT_VGA_FIRST <= port <= PORT_VGA_LAST:
        return False
    if port <= PORT_GRAPHICS + 1:
        return port != 0x3C3 and port != 0x3CB and port != 0x3CD
    return port & ~1 == PORT_CRTC or port == PORT_STATUS


@compiled
def _status(now: int) -> int:
    """Where the beam is at virtual time ``now``: loops that wait for the retrace end."""
    line = now // _LINE_NS % _LINES
    status = 0
    if line >= _SHOWN_LINES or now % _LINE_NS >= _SHOWN_LINE_NS:
        status |= STATUS_BLANK
    if _RETRACE_FIRST <= line <= _RETRACE_LAST:
        status |= STATUS_VERTICAL_RETRACE
    return status


@compiled
def vga_read(vga: VgaState, port: int, now: int) -> int:
    """Read a port of which ``vga_has_port`` is true."""
    if port == PORT_CRTC:
        return vga.crtc_index
    if port == PORT_CRTC + 1:
        return vga.crtc[vga.crtc_index] if vga.crtc_index < CRTC_REGISTERS else 0
    if port == PORT_STATUS:
        vga.attribute_wants_data = 0
        return _status(now)
    if port == PORT_ATTRIBUTE:
        return vga.attribute_index
    if port == PORT_ATTRIBUTE_DATA:
        index = vga.attribute_index & 0x1F
        return vga.attribute[index] if index < ATTRIBUTE_REGISTERS else 0
    if port == PORT_MISCELLANEOUS_READ:
        return vga.miscellaneous
    if port == PORT_GRAPHICS:
        return vga.graphics_index
    if port == PORT_GRAPHICS + 1:
        return vga.graphics[vga.graphics_index] if vga.graphics_index < GRAPHICS_REGISTERS else 0
    if port == PORT_SEQUENCER:
        return vga.sequencer_index
    if port == PORT_SEQUENCER + 1:
        index = vga.sequencer_index
        return vga.sequencer[index] if index < SEQUENCER_REGISTERS else 0
    return 0


@compiled
def _write_crtc(vga: VgaState, value: int) -> None:
    index = vga.crtc_index
    if index >= CRTC_REGISTERS:
        return
    if index <= CRTC_OVERFLOW and vga.crtc[CRTC_RETRACE_END] & _PROTECT:
        if index == CRTC_OVERFLOW:
            kept = vga.crtc[index] & ~_LINE_COMPARE_HIGH
            vga.crtc[index] = kept | (value & _LINE_COMPARE_HIGH)
        return
    vga.crtc[index] = value


@compiled
def _write_attribute(vga: VgaState, value: int) -> None:
    if vga.attribute_wants_data:
        index = vga.attribute_index & 0x1F
        if index < ATTRIBUTE_REGISTERS:
            vga.attribute[index] = value
    else:
        vga.attribute_index = value & 0x3F
    vga.attribute_wants_data ^= 1


@compiled
def vga_write(vga: VgaState, port: int, value: int) -> None:
    """Write a byte to a port of which ``vga_has_port`` is true."""
    if port == PORT_CRTC:
        vga.crtc_index = value & 0x3F
    elif port == PORT_CRTC + 1:
        _write_crtc(vga, value)
    elif port == PORT_ATTRIBUTE:
        _write_attribute(vga, value)
    elif port == PORT_MISCELLANEOUS_WRITE:
        vga.miscellaneous = value
    elif port == PORT_GRAPHICS:
        vga.graphics_index = value & 0x0F
    elif port == PORT_GRAPHICS + 1:
        if vga.graphics_index < GRAPHICS_REGISTERS:
            vga.graphics[vga.graphics_index] = value
    elif port == PORT_SEQUENCER:
        vga.sequencer_index = value & 0x07
    elif port == PORT_SEQUENCER + 1:
        if vga.sequencer_index < SEQUENCER_REGISTERS:
            vga.sequencer[vga.sequencer_index] = value
