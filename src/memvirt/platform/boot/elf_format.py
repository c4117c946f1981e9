# SPDX-License-Identifier: Apache-2.0
"""The part of the ELF format a boot loader needs: header and program headers, fully validated.

(System V ABI, chapters 4 and 5.) Sections are never looked at, so a stripped or oddly sectioned
file loads like any other.
"""

import struct
from dataclasses import dataclass

from memvirt.address import GuestPhysicalAddress
from memvirt.platform.boot.image import (
    HIGH_MEMORY_START,
    LAYOUT_END,
    LOW_MEMORY_END,
    BootError,
    Segment,
    check_fits,
)

ELF_MAGIC = b"\x7fELF"
CLASS_32 = 1
CLASS_64 = 2
MACHINE_386 = 3
MACHINE_X86_64 = 62
_LITTLE_ENDIAN = 1
_TYPE_EXECUTABLE = 2
_SEGMENT_LOAD = 1
_TYPE_NAMES = {1: "relocatable object", 3: "shared object or PIE", 4: "core dump"}


@dataclass(frozen=True, slots=True)
class LoadSegment:
    """A PT_LOAD program header."""

    offset: int
    vaddr: int
    paddr: int
    file_size: int
    memory_size: int


@dataclass(frozen=True, slots=True)
class ElfExecutable:
    """Entry point (as in the header) and loadable segments, all within the file.

    Headers that a segment would load below 1 MiB, where no memory is, are left out of it.
    """

    entry: int
    loads: tuple[LoadSegment, ...]

    def entry_gpa(self, name: str) -> GuestPhysicalAddress:
        """The entry's physical address: through the segment whose virtual range holds it."""
        for load in self.loads:
            if load.vaddr <= self.entry < load.vaddr + load.file_size:
                return GuestPhysicalAddress(load.paddr + self.entry - load.vaddr)
        for load in self.loads:
            if load.paddr <= self.entry < load.paddr + load.file_size:
                return GuestPhysicalAddress(self.entry)
        raise BootError(
            name, f"the ELF entry point {self.entry:#x} is in no segment's bytes from the file"
        )


def is_elf(image: bytes) -> bool:
    """True when the file starts with the ELF magic."""
    return image[:4] == ELF_MAGIC


def elf_class(image: bytes) -> int:
    """``CLASS_32``, ``CLASS_64``, or 0 when the file ends before saying."""
    return image[4] if len(image) > 4 else 0


def parse_elf(image: bytes, name: str, *, expected_class: int, machine: int) -> ElfExecutable:
    """Validate everything a loader relies on; ``BootError`` names what is wrong."""
    if not is_elf(image):
        raise BootError(name, "not an ELF file: it does not start with 7f 45 4c 46")
    header_size = 64 if expected_class == CLASS_64 else 52
    bits = 32 * expected_class
    if elf_class(image) not in (0, expected_class):
        raise BootError(name, f"ELF class {image[4]}; ELF{bits} (class {expected_class}) is needed")
    if len(image) < header_size:
        raise BootError(
            name, f"truncated ELF: {len(image)} bytes, the ELF{bits} header alone is {header_size}"
        )
    if image[5] != _LITTLE_ENDIAN:
        raise BootError(name, f"ELF data encoding {image[5]}; little-endian (1) is needed")
    layout = "<HHIQQQIHHH" if expected_class == CLASS_64 else "<HHIIIIIHHH"
    fields = struct.unpack_from(layout, image, 16)
    kind, found_machine, _, entry, table, _, _, _, entry_size, count = fields
    if found_machine != machine:
        raise BootError(name, f"ELF machine {found_machine}; {machine} (x86) is needed")
    if kind != _TYPE_EXECUTABLE:
        kind_name = _TYPE_NAMES.get(kind, f"type {kind}")
        raise BootError(name, f"ELF {kind_name}; a static executable (type 2) is needed")
    wanted_size = 56 if expected_class == CLASS_64 else 32
    if count and entry_size != wanted_size:
        raise BootError(name, f"ELF program headers of {entry_size} bytes; {wanted_size} needed")
    if table + count * wanted_size > len(image):
        raise BootError(
            name,
            f"truncated ELF: {count} program headers end at {table + count * wanted_size}, the "
            f"file at {len(image)}",
        )
    loads = _read_loads(image, name, expected_class, table, count)
    headers = ((0, header_size), (table, table + count * wanted_size))
    loads = tuple(part for load in loads if (part := _without_headers(image, load, headers)))
    if not loads:
        raise BootError(name, "the ELF file has no loadable segment (PT_LOAD)")
    return ElfExecutable(entry, loads)


def _read_loads(
    image: bytes, name: str, expected_class: int, table: int, count: int
) -> tuple[LoadSegment, ...]:
    loads = []
    for i in range(count):
        if expected_class == CLASS_64:
            fields = struct.unpack_from("<IIQQQQQ", image, table + 56 * i)
            kind, _, offset, vaddr, paddr, file_size, memory_size = fields
        else:
            fields = struct.unpack_from("<IIIIII", image, table + 32 * i)
            kind, offset, vaddr, paddr, file_size, memory_size = fields
        if kind != _SEGMENT_LOAD or memory_size == 0:
            continue
        if file_size > memory_size:
            raise BootError(
                name,
                f"ELF segment {i} has {file_size} bytes in the file but only {memory_size} in "
                "memory",
            )
        if offset + file_size > len(image):
            raise BootError(
                name,
                f"truncated ELF: segment {i} ends at {offset + file_size}, the file at "
                f"{len(image)}",
            )
        loads.append(LoadSegment(offset, vaddr, paddr, file_size, memory_size))
    return tuple(loads)


def _without_headers(
    image: bytes, load: LoadSegment, headers: tuple[tuple[int, int], ...]
) -> LoadSegment | None:
    """The part of a segment from 1 MiB on, if all it has below are the file's headers.

    Linkers put the file's headers (``headers``: where they are in it) into the first segment, a
    page before the code: for code linked to 1 MiB that page is no memory. Under QEMU it is the
    firmware's, and what is loaded there is lost. None if nothing is left; the segment as it is if
    it has other bytes there, or lies elsewhere.
    """
    if load.offset != 0 or not LOW_MEMORY_END <= load.paddr < HIGH_MEMORY_START:
        return load
    cut = min(HIGH_MEMORY_START - load.paddr, load.memory_size)
    below = bytearray(image[: min(cut, load.file_size)])
    for begin, end in headers:
        below[begin:end] = bytes(len(below[begin:end]))
    if any(below):
        return load
    left = max(load.file_size - cut, 0)
    if cut == load.memory_size:
        return None
    return LoadSegment(cut, load.vaddr + cut, load.paddr + cut, left, load.memory_size - cut)


def place_loads(
    image: bytes,
    name: str,
    executable: ElfExecutable,
    memory_bytes: int,
    *,
    lowest: int = LAYOUT_END,
) -> tuple[list[Segment], int]:
    """The segments to copy, and the first address past everything the image occupies."""
    ordered = sorted(executable.loads, key=lambda load: load.paddr)
    end = 0
    segments = []
    for load in ordered:
        load_end = load.paddr + load.memory_size
        check_fits(name, "an ELF segment", load.paddr, load_end, memory_bytes, lowest=lowest)
        if load.paddr < end:
            raise BootError(name, f"ELF segments overlap at physical address {load.paddr:#x}")
        end = load_end
        if load.file_size:
            data = image[load.offset : load.offset + load.file_size]
            segments.append(Segment(GuestPhysicalAddress(load.paddr), data))
    return segments, end
