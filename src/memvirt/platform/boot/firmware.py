# SPDX-License-Identifier: Apache-2.0
"""What a PC's firmware leaves in memory for every kernel, whatever its boot protocol."""

from __future__ import annotations

import struct

from memvirt.address import GuestPhysicalAddress
from memvirt.platform.boot.acpi import acpi_segment
from memvirt.platform.boot.image import BIOS_DATA, KIB, LOW_MEMORY_END, Segment
from memvirt.platform.boot.mp_table import mp_tables

MP_TABLES = GuestPhysicalAddress(LOW_MEMORY_END + 0x10)


def firmware_segments() -> tuple[Segment, ...]:
    """The BIOS data area (COM1's port, the EBDA's segment, KiB of base memory), the EBDA with its
    own size and the MP tables, and the ACPI tables."""
    area = bytearray(0x16)
    struct.pack_into("<H", area, 0x00, 0x3F8)
    struct.pack_into("<H", area, 0x0E, LOW_MEMORY_END >> 4)
    struct.pack_into("<H", area, 0x13, LOW_MEMORY_END // KIB)
    return (
        Segment(BIOS_DATA, bytes(area)),
        Segment(LOW_MEMORY_END, b"\x01"),
        Segment(MP_TABLES, mp_tables(MP_TABLES)),
        acpi_segment(),
    )
