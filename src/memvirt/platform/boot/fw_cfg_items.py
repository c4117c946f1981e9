# SPDX-License-Identifier: Apache-2.0
"""What the firmware configuration device tells a guest: QEMU's items, by QEMU's keys.

(QEMU, include/standard-headers/linux/qemu_fw_cfg.h and hw/i386/fw_cfg.h, for the numbers; its
documentation docs/specs/fw_cfg.rst for the file directory.) Numbers are little-endian, but
big-endian in the directory.
"""

from __future__ import annotations

import struct

from memvirt.platform.boot.image import BootImage

SIGNATURE, ID, RAM_SIZE, NO_GRAPHIC, PROCESSORS = 0x00, 0x01, 0x03, 0x04, 0x05
KERNEL_ADDRESS, KERNEL_SIZE = 0x07, 0x08
INITRD_ADDRESS, INITRD_SIZE, BOOT_DEVICE, NUMA = 0x0A, 0x0B, 0x0C, 0x0D
BOOT_MENU, MAXIMUM_PROCESSORS, KERNEL_ENTRY = 0x0E, 0x0F, 0x10
KERNEL_DATA, INITRD_DATA = 0x11, 0x12
COMMAND_LINE_ADDRESS, COMMAND_LINE_SIZE, COMMAND_LINE_DATA = 0x13, 0x14, 0x15
SETUP_SIZE, SETUP_DATA = 0x17, 0x18
FILE_DIRECTORY, FIRST_FILE = 0x19, 0x20
_TRADITIONAL_INTERFACE = 1  # bit 0 of the item ID; bit 1 would be DMA
_NAME_BYTES = 56


def _u16(value: int) -> bytes:
    return struct.pack("<H", value)


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _files(loaded: BootImage) -> dict[str, bytes]:
    """Named items. The memory map is made of ranges as E820 reports them."""
    ranges = (struct.pack("<QQI", e.gpa, e.size, int(e.kind)) for e in loaded.e820)
    return {"etc/e820": b"".join(ranges)}


def fw_cfg_items(loaded: BootImage, memory_bytes: int) -> dict[int, bytes]:
    """The items for a guest with ``memory_bytes`` of RAM, by key."""
    parts = loaded.parts
    items = {
        SIGNATURE: b"QEMU",
        ID: _u32(_TRADITIONAL_INTERFACE),
        RAM_SIZE: struct.pack("<Q", memory_bytes),
        NO_GRAPHIC: _u16(1),
        PROCESSORS: _u16(1),
        MAXIMUM_PROCESSORS: _u16(1),
        BOOT_DEVICE: _u16(0),
        BOOT_MENU: _u16(0),
        NUMA: bytes(16),  # no nodes: their number, then the processor's node
        KERNEL_ADDRESS: _u32(parts.kernel_gpa),
        KERNEL_ENTRY: _u32(loaded.registers.rip),
        KERNEL_SIZE: _u32(len(parts.kernel)),
        KERNEL_DATA: parts.kernel,
        SETUP_SIZE: _u32(len(parts.setup)),
        SETUP_DATA: parts.setup,
        INITRD_ADDRESS: _u32(parts.initrd_gpa),
        INITRD_SIZE: _u32(len(parts.initrd)),
        INITRD_DATA: parts.initrd,
        COMMAND_LINE_ADDRESS: _u32(parts.command_line_gpa),
        COMMAND_LINE_SIZE: _u32(len(parts.command_line)),
        COMMAND_LINE_DATA: parts.command_line,
    }
    files = sorted(_files(loaded).items())
    directory = struct.pack(">I", len(files))
    for key, (name, data) in enumerate(files, FIRST_FILE):
        items[key] = data
        directory += struct.pack(f">IHH{_NAME_BYTES}s", len(data), key, 0, name.encode())
    return items | {FILE_DIRECTORY: directory}
