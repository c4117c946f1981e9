# SPDX-License-Identifier: Apache-2.0
"""The Linux "zero page" (Linux Documentation/arch/x86/boot.rst and zero-page.rst)."""

import struct

from memvirt.address import GuestPhysicalAddress
from memvirt.platform.boot.image import (
    BOOT_PARAMS,
    COMMAND_LINE,
    HIGH_MEMORY_START,
    KIB,
    PAGE_SIZE,
    Segment,
    low_memory_top,
    memory_map,
)

SETUP_HEADER = 0x1F1
"""Offset of the setup header, in the image and in the zero page alike."""

# Zero page offsets.
_EXT_MEM_K = 0x002
_EXT_RAMDISK_IMAGE = 0x0C0
_EXT_RAMDISK_SIZE = 0x0C4
_ALT_MEM_K = 0x1E0
_E820_ENTRIES = 0x1E8
_TYPE_OF_LOADER = 0x210
_LOADFLAGS = 0x211
_CODE32_START = 0x214
_RAMDISK_IMAGE = 0x218
_RAMDISK_SIZE = 0x21C
_CMD_LINE_PTR = 0x228
_E820_TABLE = 0x2D0

_LOADER_UNDEFINED = 0xFF
_LOADED_HIGH = 0x01


def synthetic_header() -> bytes:
    """A setup header for kernels that bring none (an ELF vmlinux), at ``SETUP_HEADER``."""
    header = bytearray(0x80)
    struct.pack_into("<H", header, 0x1FE - SETUP_HEADER, 0xAA55)
    header[0x202 - SETUP_HEADER : 0x206 - SETUP_HEADER] = b"HdrS"
    struct.pack_into("<H", header, 0x206 - SETUP_HEADER, 0x020F)
    struct.pack_into("<I", header, 0x230 - SETUP_HEADER, 0x0100_0000)  # kernel_alignment
    return bytes(header)


def boot_params_segments(
    *,
    header: bytes,
    load_gpa: GuestPhysicalAddress,
    memory_bytes: int,
    command_line: bytes,
    initrd_gpa: GuestPhysicalAddress,
    initrd: bytes,
) -> list[Segment]:
    """The zero page, the command line and the initrd, as segments."""
    page = bytearray(PAGE_SIZE)
    page[SETUP_HEADER : SETUP_HEADER + len(header)] = header
    above_1_mib_kib = (low_memory_top(memory_bytes) - HIGH_MEMORY_START) // KIB
    struct.pack_into("<H", page, _EXT_MEM_K, min(above_1_mib_kib, 0xFFFF))
    struct.pack_into("<I", page, _ALT_MEM_K, above_1_mib_kib)
    page[_TYPE_OF_LOADER] = _LOADER_UNDEFINED
    page[_LOADFLAGS] |= _LOADED_HIGH
    struct.pack_into("<I", page, _CODE32_START, load_gpa)
    struct.pack_into("<I", page, _CMD_LINE_PTR, COMMAND_LINE)
    segments = [Segment(COMMAND_LINE, command_line)]
    if initrd:
        struct.pack_into("<I", page, _RAMDISK_IMAGE, initrd_gpa & 0xFFFF_FFFF)
        struct.pack_into("<I", page, _RAMDISK_SIZE, len(initrd) & 0xFFFF_FFFF)
        struct.pack_into("<I", page, _EXT_RAMDISK_IMAGE, initrd_gpa >> 32)
        struct.pack_into("<I", page, _EXT_RAMDISK_SIZE, len(initrd) >> 32)
        segments.append(Segment(initrd_gpa, initrd))
    entries = memory_map(memory_bytes)
    page[_E820_ENTRIES] = len(entries)
    for i, entry in enumerate(entries):
        struct.pack_into("<QQI", page, _E820_TABLE + 20 * i, entry.gpa, entry.size, int(entry.kind))
    return [Segment(BOOT_PARAMS, bytes(page)), *segments]
