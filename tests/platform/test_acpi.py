# SPDX-License-Identifier: Apache-2.0
"""ACPI tables and fixed registers, read as a guest reads them."""

from __future__ import annotations

import struct

import pytest

from memvirt.platform.boot.acpi import ACPI_TABLES, acpi_segment
from memvirt.platform.boot.linux import PLATFORM_PARAMETERS, missing_parameters
from memvirt.platform.ioapic import IO_APIC_BASE, IO_APIC_ID
from memvirt.platform.pc import new_pc
from memvirt.platform.ports import IO_OK, IO_STOP, io_read, io_write

_KERNEL = bytes(0x20E) + struct.pack("<H", 0x100) + bytes(0xF0) + b"6.1.0 (somebody)\0"
_NO_KERNEL = bytes(0x400)


def table(gpa: int) -> bytes:
    """The table at ``gpa``, its checksum verified."""
    segment = acpi_segment()
    offset = gpa - segment.gpa
    assert 0 <= offset < len(segment.data)
    (length,) = struct.unpack_from("<I", segment.data, offset + 4)
    data = segment.data[offset : offset + length]
    assert len(data) == length
    assert sum(data) & 0xFF == 0
    return data


def tables() -> dict[bytes, bytes]:
    """Every table reached from the RSDP, by signature."""
    root = acpi_segment().data[:36]
    assert root.startswith(b"RSD PTR ")
    assert sum(root[:20]) & 0xFF == 0
    assert sum(root) & 0xFF == 0
    (xsdt_gpa,) = struct.unpack_from("<Q", root, 24)
    xsdt = table(xsdt_gpa)
    assert xsdt[:4] == b"XSDT"
    found = {}
    for (gpa,) in struct.iter_unpack("<Q", xsdt[36:]):
        found[table(gpa)[:4]] = table(gpa)
    (dsdt,) = struct.unpack_from("<I", found[b"FACP"], 40)
    return found | {b"DSDT": table(dsdt)}


def test_tables_lie_where_guests_look() -> None:
    segment = acpi_segment()
    assert segment.gpa == ACPI_TABLES
    assert segment.gpa % 16 == 0
    assert segment.gpa >= 0xE0000
    assert segment.end <= 0x100000
    assert tables().keys() == {b"FACP", b"APIC", b"DSDT"}


def test_fixed_registers_are_those_of_the_ports() -> None:
    """The FADT's ports exist, SCI_EN is set, and sleeping in \\_S5 powers off."""
    found = tables()
    fadt = found[b"FACP"]
    events, _, control = struct.unpack_from("<3I", fadt, 56)
    (reset_port,) = struct.unpack_from("<Q", fadt, 120)
    (smi_port,) = struct.unpack_from("<I", fadt, 48)
    assert smi_port == 0
    pc = new_pc()[0]
    assert io_read(pc, control, 2, 0) & 1 == 1
    assert io_read(pc, events, 2, 0) == 0
    assert io_write(pc, events + 2, 2, 0x0120, 0) == IO_OK
    assert io_read(pc, events + 2, 2, 0) == 0x0120
    assert io_read(pc, events, 4, 0) == 0x0120_0000
    assert pc.unknown_reads == 0
    assert pc.unknown_writes == 0
    package = found[b"DSDT"][36:]
    assert package[:8] == b"\x08_S5_\x12\x06\x04"  # Name, Package of 4
    assert package[8] == 0  # ZeroOp: the sleep type
    assert io_write(pc, control, 2, package[8] << 10 | 1 << 13, 0) == IO_STOP
    assert pc.control.poweroff_requested
    pc = new_pc()[0]
    assert io_write(pc, reset_port, 1, fadt[128], 0) == IO_STOP
    assert pc.control.reset_requested


def test_one_processor_and_one_io_apic() -> None:
    madt = tables()[b"APIC"]
    entries = []
    offset = 44
    while offset < len(madt):
        kind, length = madt[offset], madt[offset + 1]
        entries.append((kind, madt[offset + 2 : offset + length]))
        offset += length
    assert offset == len(madt)
    kinds = [kind for kind, _ in entries]
    assert kinds.count(0) == 1
    assert kinds.count(1) == 1
    io_apic = next(body for kind, body in entries if kind == 1)
    assert struct.unpack("<BxII", io_apic) == (IO_APIC_ID, IO_APIC_BASE, 0)
    overrides = [struct.unpack("<BBIH", body) for kind, body in entries if kind == 2]
    assert overrides == [(0, 0, 2, 0), (0, 9, 9, 0xD)]
    assert struct.unpack_from("<II", madt, 36) == (0xFEE00000, 1)


@pytest.mark.parametrize(
    ("image", "given", "added"),
    [
        (_KERNEL, "", PLATFORM_PARAMETERS),
        (_KERNEL, "console=ttyS0 quiet", PLATFORM_PARAMETERS),
        (_KERNEL, "panic=5", ()),
        (_KERNEL, "noapic panic=0", ()),
        (_KERNEL, "xpanic=1 nopanic", PLATFORM_PARAMETERS),
        (_NO_KERNEL, "console=ttyS0", ()),
    ],
)
def test_added_parameters(image: bytes, given: str, added: tuple[str, ...]) -> None:
    """Only what the user has not set himself, and only for Linux."""
    assert missing_parameters(image, given) == added
