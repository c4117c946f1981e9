# SPDX-License-Identifier: Apache-2.0
"""The ACPI tables of the virtual PC: one processor, power-off, reset. Nothing else.

Written from the ACPI Specification, revision 6.5: RSDP 5.2.5, XSDT 5.2.8, FADT 5.2.9, FACS
5.2.10, MADT 5.2.12, and AML (chapter 20) for the one object the DSDT needs, ``\\_S5_``. They lie
in the BIOS area, where a guest looks for them on 16-byte boundaries from 0xE0000 (5.2.5.1).
Interrupts of devices go through the I/O APIC and, besides, through the 8259A pair (PCAT_COMPAT in
the MADT). There is no PM timer, no HPET and no general-purpose event.
"""

import struct

from memvirt.address import GuestPhysicalAddress
from memvirt.platform.boot.image import Segment
from memvirt.platform.control import (
    PORT_ACPI_CONTROL,
    PORT_ACPI_EVENTS,
    PORT_RESET_CONTROL,
)
from memvirt.platform.ioapic import IO_APIC_BASE, IO_APIC_ID, TIMER_PIN
from memvirt.platform.lapic import LAPIC_BASE

ACPI_TABLES = GuestPhysicalAddress(0xE0000)
_OEM = b"MEMVRT"
_OEM_TABLE = b"MEMVIRT "
_CREATOR = b"MVRT"

_SCI_IRQ = 9
_CMOS_CENTURY = 0x32
_RESET_VALUE = 0x06  # port 0xcf9: full reset
_NO_C2, _NO_C3 = 101, 1001  # latencies above these limits mean "not supported"
_BOOT_ARCH = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3  # legacy devices, 8042; no VGA, no MSI
# WBINVD works, C1 works, no fixed power or sleep button, RTC wakes nobody, reset register present.
_FADT_FLAGS = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10

_MADT_LOCAL_APIC, _MADT_IO_APIC, _MADT_OVERRIDE, _MADT_LOCAL_APIC_NMI = 0, 1, 2, 4
_AS_THE_BUS, _HIGH_AND_LEVEL = 0, 0xD  # MPS INTI flags, table 5.26
_MADT_PCAT_COMPAT = 1
_ALL_PROCESSORS = 0xFF

_AML_NAME, _AML_PACKAGE, _AML_ZERO = b"\x08", b"\x12", b"\x00"


def _checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum over the table zero modulo 256."""
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: header (table 5.4), body, checksum."""
    head = struct.pack(
        "<4sIBB6s8sI4sI",
        signature,
        36 + len(body),
        revision,
        0,
        _OEM,
        _OEM_TABLE,
        1,
        _CREATOR,
        1,
    )
    data = bytearray(head + body)
    data[9] = _checksum(data)
    return bytes(data)


def _rsdp(xsdt_gpa: GuestPhysicalAddress) -> bytes:
    head = bytearray(struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM, 2, 0))
    head[8] = _checksum(head)
    full = bytearray(bytes(head) + struct.pack("<IQB3x", 36, xsdt_gpa, 0))
    full[32] = _checksum(full)
    return bytes(full)


def _fadt(facs_gpa: GuestPhysicalAddress, dsdt_gpa: GuestPhysicalAddress) -> bytes:
    """Revision 3, 244 bytes: the register blocks by their 32-bit I/O ports."""
    body = struct.pack(
        "<IIBBHIBBBB",
        facs_gpa,
        dsdt_gpa,
        0,
        0,  # preferred profile: unspecified
        _SCI_IRQ,
        0,  # no SMI command port: the system is always in ACPI mode
        0,
        0,
        0,
        0,
    )
    body += struct.pack("<8I", PORT_ACPI_EVENTS, 0, PORT_ACPI_CONTROL, 0, 0, 0, 0, 0)
    body += struct.pack("<8B", 4, 2, 0, 0, 0, 0, 0, 0)  # lengths of those blocks
    body += struct.pack("<HHHH", _NO_C2, _NO_C3, 0, 0)
    body += struct.pack("<5BHBI", 0, 0, 0, 0, _CMOS_CENTURY, _BOOT_ARCH, 0, _FADT_FLAGS)
    body += struct.pack("<BBBBQ", 1, 8, 0, 1, PORT_RESET_CONTROL)  # generic address, I/O, byte
    body += struct.pack("<BHB", _RESET_VALUE, 0, 0)
    body += struct.pack("<QQ", facs_gpa, dsdt_gpa)
    return _table(b"FACP", 3, body.ljust(244 - 36, b"\0"))


def _madt() -> bytes:
    body = struct.pack("<II", LAPIC_BASE, _MADT_PCAT_COMPAT)
    body += struct.pack("<BBBBI", _MADT_LOCAL_APIC, 8, 0, 0, 1)
    body += struct.pack("<BBBBII", _MADT_IO_APIC, 12, IO_APIC_ID, 0, IO_APIC_BASE, 0)
    for irq, pin, flags in ((0, TIMER_PIN, _AS_THE_BUS), (_SCI_IRQ, _SCI_IRQ, _HIGH_AND_LEVEL)):
        body += struct.pack("<BBBBIH", _MADT_OVERRIDE, 10, 0, irq, pin, flags)
    body += struct.pack("<BBBHB", _MADT_LOCAL_APIC_NMI, 6, _ALL_PROCESSORS, 0, 1)
    return _table(b"APIC", 3, body)


def _dsdt() -> bytes:
    r"""``Name (\_S5, Package (4) {0, 0, 0, 0})``: sleep type 0 is soft-off."""
    elements = _AML_ZERO * 4
    package = _AML_PACKAGE + bytes([2 + len(elements), 4]) + elements
    return _table(b"DSDT", 2, _AML_NAME + b"_S5_" + package)


def acpi_segment() -> Segment:
    """All tables as one segment of the BIOS area."""
    facs_gpa = GuestPhysicalAddress(ACPI_TABLES + 0x40)
    dsdt_gpa = GuestPhysicalAddress(facs_gpa + 0x40)
    facs = struct.pack("<4sI", b"FACS", 64).ljust(64, b"\0")
    dsdt = _dsdt()
    fadt_gpa = GuestPhysicalAddress(dsdt_gpa + (len(dsdt) + 15 & -16))
    fadt = _fadt(facs_gpa, dsdt_gpa)
    madt_gpa = GuestPhysicalAddress(fadt_gpa + (len(fadt) + 15 & -16))
    madt = _madt()
    xsdt_gpa = GuestPhysicalAddress(madt_gpa + (len(madt) + 15 & -16))
    xsdt = _table(b"XSDT", 1, struct.pack("<2Q", fadt_gpa, madt_gpa))
    area = bytearray(xsdt_gpa + len(xsdt) - ACPI_TABLES)
    for gpa, table in (
        (ACPI_TABLES, _rsdp(xsdt_gpa)),
        (facs_gpa, facs),
        (dsdt_gpa, dsdt),
        (fadt_gpa, fadt),
        (madt_gpa, madt),
        (xsdt_gpa, xsdt),
    ):
        area[gpa - ACPI_TABLES : gpa - ACPI_TABLES + len(table)] = table
    return Segment(ACPI_TABLES, bytes(area))
