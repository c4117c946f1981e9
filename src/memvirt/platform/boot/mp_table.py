# SPDX-License-Identifier: Apache-2.0
"""The MP tables, for kernels that know no ACPI (Intel MultiProcessor Specification 1.4, chapter 4).

One processor, the ISA bus, one I/O APIC, the wiring of both. The floating pointer lies in the first
kilobyte of the extended BIOS data area, where a kernel looks first.
"""

from __future__ import annotations

import struct

from memvirt.address import GuestPhysicalAddress
from memvirt.platform.ioapic import IO_APIC_BASE, IO_APIC_ID, TIMER_PIN
from memvirt.platform.ioapic import VERSION as IO_APIC_VERSION
from memvirt.platform.lapic import LAPIC_BASE
from memvirt.platform.lapic import VERSION as LAPIC_VERSION

_PROCESSOR, _BUS, _IO_APIC, _IO_INTERRUPT, _LOCAL_INTERRUPT = range(5)
_ENABLED, _BOOTSTRAP = 1, 2
_SIGNATURE, _FPU_AND_APIC = 0x0001_06CA, 1 << 0 | 1 << 9  # as CPUID leaf 1 has them
_INT, _NMI, _EXTINT = 0, 1, 3
_ISA_BUS, _CASCADE = 0, 2
_ALL_LOCAL_APICS = 0xFF
_HEADER_BYTES = 44
_POINTER_BYTES = 16


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _entries() -> list[bytes]:
    entries = [
        struct.pack(
            "<BBBBII8x",
            _PROCESSOR,
            0,
            LAPIC_VERSION & 0xFF,
            _ENABLED | _BOOTSTRAP,
            _SIGNATURE,
            _FPU_AND_APIC,
        ),
        struct.pack("<BB6s", _BUS, _ISA_BUS, b"ISA   "),
        struct.pack("<BBBBI", _IO_APIC, IO_APIC_ID, IO_APIC_VERSION & 0xFF, _ENABLED, IO_APIC_BASE),
    ]
    for irq in range(16):
        if irq != _CASCADE:
            pin = TIMER_PIN if irq == 0 else irq
            wire = (_IO_INTERRUPT, _INT, 0, _ISA_BUS, irq, IO_APIC_ID, pin)
            entries.append(struct.pack("<BBHBBBB", *wire))
    for kind, input_number in ((_EXTINT, 0), (_NMI, 1)):
        wire = (_LOCAL_INTERRUPT, kind, 0, _ISA_BUS, 0, _ALL_LOCAL_APICS, input_number)
        entries.append(struct.pack("<BBHBBBB", *wire))
    return entries


def mp_tables(gpa: GuestPhysicalAddress) -> bytes:
    """The floating pointer, to lie at ``gpa`` (a multiple of 16), and the table behind it."""
    entries = _entries()
    length = _HEADER_BYTES + sum(map(len, entries))
    header = struct.pack(
        "<4sHBB8s12sIHHIHBx",
        b"PCMP",
        length,
        4,
        0,
        b"MEMVIRT ",
        b"VIRTUAL PC  ",
        0,
        0,
        len(entries),
        LAPIC_BASE,
        0,
        0,
    )
    table = bytearray(header + b"".join(entries))
    table[7] = _checksum(table)
    pointer = bytearray(struct.pack("<4sIBBB5x", b"_MP_", gpa + _POINTER_BYTES, 1, 4, 0))
    pointer[10] = _checksum(pointer)
    return bytes(pointer + table)
