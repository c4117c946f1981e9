# SPDX-License-Identifier: Apache-2.0
"""ELF core files of a whole guest, as QEMU's ``dump-guest-memory`` and ``virsh dump`` write them.

Memory is in PT_LOAD segments by physical address (System V gABI, "Program Header"). Notes named
"QEMU" hold a processor's state each (QEMU, target/i386/arch_dump.c, ``QEMUCPUState``): a version
and a size of 4 bytes, 18 registers of 8, 10 segments of 24, then CR0 to CR4. A note named
"VMCOREINFO" holds what the guest's kernel tells of itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memvirt.address import PAGE_BYTES, PhysicalPageNumber

from .dump import DumpError, Extent, FileDump

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION_INFO = 44  # offset of sh_info in a section header
_PT_LOAD, _PT_NOTE, _PN_XNUM = 1, 4, 0xFFFF
_CORE, _X86_64 = 4, 62
_CONTROL_AT = 8 + 18 * 8 + 10 * 24
_MOST_NOTES = 64 << 20


def open_elf_core(path: Path) -> FileDump:
    """Raises DumpError."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            raise DumpError(f"{path}: ends in its ELF header")
        (ident, kind, machine, _, _, at, sections, _, _, size, count, _, _, _) = _HEADER.unpack(
            head
        )
        if ident[4] != 2 or ident[5] != 1 or kind != _CORE:
            raise DumpError(f"{path}: is no 64-bit little-endian ELF core file")
        if count == _PN_XNUM:  # more segments than the header can say: the first section says it
            file.seek(sections + _SECTION_INFO)
            (count,) = struct.unpack("<I", file.read(4))
        if size < _PROGRAM.size or count > 1 << 20:
            raise DumpError(f"{path}: damaged ELF header")
        file.seek(at)
        table = file.read(size * count)
        extents: list[Extent] = []
        registers: dict[str, int] = {}
        vmcoreinfo = b""
        length = path.stat().st_size
        for number in range(count):
            if len(table) < (number + 1) * size:
                raise DumpError(f"{path}: ends in its table of segments")
            (what, _, offset, _, physical, stored, _, _) = _PROGRAM.unpack_from(
                table, number * size
            )
            if offset + stored > length:
                raise DumpError(
                    f"{path}: is cut off: segment {number} ends at byte {offset + stored:,}, the "
                    f"file at {length:,}"
                )
            if what == _PT_LOAD and stored >= PAGE_BYTES:
                if physical % PAGE_BYTES:
                    raise DumpError(f"{path}: segment {number} begins inside a page")
                ppn = PhysicalPageNumber(physical // PAGE_BYTES)
                extents.append(Extent(ppn, stored // PAGE_BYTES, offset))
            elif what == _PT_NOTE and machine == _X86_64 and stored <= _MOST_NOTES:
                file.seek(offset)
                notes = file.read(stored)
                registers = registers or note_registers(notes)
                vmcoreinfo = vmcoreinfo or note_vmcoreinfo(notes)
    if not extents:
        raise DumpError(f"{path}: holds no memory")
    return FileDump(path, "ELF core", extents, registers, vmcoreinfo)


def _notes(notes: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its content begins, size) of each note."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, _ = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size].rstrip(b"\0")
        at += 12 + (name_size + 3 & ~3)
        yield name, at, size
        at += size + 3 & ~3


def note_registers(notes: bytes) -> dict[str, int]:
    """CR0, CR3, CR4 of the first processor with a QEMU note; empty without one."""
    for name, at, _ in _notes(notes):
        if name == b"QEMU" and at + _CONTROL_AT + 40 <= len(notes):
            control: Any = struct.unpack_from("<5Q", notes, at + _CONTROL_AT)
            return {"cr0": control[0], "cr3": control[3], "cr4": control[4]}
    return {}


def note_vmcoreinfo(notes: bytes) -> bytes:
    """The text of the VMCOREINFO note; empty without one."""
    return next((notes[at : at + size] for name, at, size in _notes(notes)
                 if name == b"VMCOREINFO"), b"")  # fmt: skip
