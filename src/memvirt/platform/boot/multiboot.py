# SPDX-License-Identifier: Apache-2.0
"""Multiboot images (Multiboot Specification version 0.6.96, sections 3.1 to 3.3)."""

import struct
from dataclasses import dataclass

from memvirt.address import GuestPhysicalAddress
from memvirt.platform.boot.elf_format import (
    CLASS_32,
    CLASS_64,
    MACHINE_386,
    elf_class,
    is_elf,
    parse_elf,
    place_loads,
)
from memvirt.platform.boot.image import (
    COMMAND_LINE,
    COMMAND_LINE_MAXIMUM,
    HIGH_MEMORY_START,
    HOLE_START,
    KIB,
    LOW_MEMORY_END,
    MULTIBOOT_INFO,
    PAGE_SIZE,
    BootError,
    BootImage,
    BootParts,
    Segment,
    check_fits,
    check_memory_size,
    encode_command_line,
    join_segments,
    low_memory_top,
    memory_map,
    place_at_top,
    place_low,
    start_protected_32,
)

HEADER_MAGIC = 0x1BAD_B002
LOADER_MAGIC = 0x2BAD_B002
SEARCH_BYTES = 8192

_FLAG_ALIGN_MODULES = 1 << 0
_FLAG_MEMORY_INFO = 1 << 1
_FLAG_ADDRESSES = 1 << 16
_UNDERSTOOD = _FLAG_ALIGN_MODULES | _FLAG_MEMORY_INFO
_MANDATORY = 0xFFFF

_INFO_MEMORY = 1 << 0
_INFO_COMMAND_LINE = 1 << 2
_INFO_MODULES = 1 << 3
_INFO_MEMORY_MAP = 1 << 6
_INFO_LOADER_NAME = 1 << 9
_INFO_SIZE = 120
_LOWEST = PAGE_SIZE  # below lie the BIOS's data and the GDT; all else makes room for the image
_LOADER_NAME = b"memvirt\0"


@dataclass(frozen=True, slots=True)
class MultibootHeader:
    """Position in the file and flags of a valid Multiboot header."""

    offset: int
    flags: int


def find_header(image: bytes) -> MultibootHeader | None:
    """The first header in the first 8192 bytes, 4-byte aligned, whose checksum is right."""
    area = image[:SEARCH_BYTES]
    for offset in range(0, len(area) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", area, offset)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            return MultibootHeader(offset, flags)
    return None


@dataclass(frozen=True, slots=True)
class _Placed:
    """What to copy, the ranges (start, end) the image takes, and where it begins."""

    segments: list[Segment]
    occupied: list[tuple[int, int]]
    entry: GuestPhysicalAddress

    @property
    def end(self) -> int:
        return max(end for _, end in self.occupied)


def _load_by_addresses(
    image: bytes, name: str, header: MultibootHeader, memory_bytes: int
) -> _Placed:
    """Section 3.1.3: the header itself says what to load where."""
    if len(image) < header.offset + 32:
        raise BootError(name, "truncated Multiboot image: the file ends inside the address fields")
    fields = struct.unpack_from("<5I", image, header.offset + 12)
    header_gpa, load_gpa, load_end, bss_end, entry = fields
    first = header.offset - (header_gpa - load_gpa)
    if load_gpa > header_gpa or first < 0:
        raise BootError(
            name,
            f"Multiboot header_addr {header_gpa:#x} and load_addr {load_gpa:#x} would load from "
            f"before the file's start",
        )
    size = load_end - load_gpa if load_end else len(image) - first
    if size <= 0:
        raise BootError(name, f"Multiboot load_end_addr {load_end:#x} is not above load_addr")
    if first + size > len(image):
        raise BootError(
            name,
            f"truncated Multiboot image: load_end_addr needs {first + size} bytes, the file has "
            f"{len(image)}",
        )
    end = max(load_gpa + size, bss_end)
    check_fits(name, "the Multiboot kernel", load_gpa, end, memory_bytes, lowest=_LOWEST)
    if not load_gpa <= entry < load_gpa + size:
        raise BootError(
            name,
            f"Multiboot entry_addr {entry:#x} is outside the bytes loaded from the file "
            f"({load_gpa:#x}-{load_gpa + size:#x})",
        )
    segment = Segment(GuestPhysicalAddress(load_gpa), image[first : first + size])
    return _Placed([segment], [(load_gpa, end)], GuestPhysicalAddress(entry))


def _load_elf(image: bytes, name: str, memory_bytes: int) -> _Placed:
    if not is_elf(image):
        raise BootError(
            name, "a Multiboot image that is not ELF must give its addresses (header flag 16)"
        )
    if elf_class(image) == CLASS_64:
        raise BootError(
            name,
            "a 64-bit ELF Multiboot image must give its addresses (header flag 16); Multiboot "
            "loads only ELF32 by program headers",
        )
    executable = parse_elf(image, name, expected_class=CLASS_32, machine=MACHINE_386)
    segments, _ = place_loads(image, name, executable, memory_bytes, lowest=_LOWEST)
    occupied = [(load.paddr, load.paddr + load.memory_size) for load in executable.loads]
    return _Placed(segments, occupied, executable.entry_gpa(name))


def _information(
    memory_bytes: int,
    info_gpa: GuestPhysicalAddress,
    command_line_gpa: GuestPhysicalAddress,
    module_gpa: GuestPhysicalAddress,
    module_size: int,
) -> bytes:
    """The information structure (section 3.3), with what it points to right behind it."""
    ranges = b"".join(
        struct.pack("<IQQI", 20, entry.gpa, entry.size, int(entry.kind))
        for entry in memory_map(memory_bytes)
    )
    modules_gpa = info_gpa + _INFO_SIZE
    ranges_gpa = modules_gpa + 16
    name_gpa = ranges_gpa + len(ranges)
    flags = _INFO_MEMORY | _INFO_COMMAND_LINE | _INFO_MEMORY_MAP | _INFO_LOADER_NAME
    modules = bytes(16)
    if module_size:
        flags |= _INFO_MODULES
        empty_string = name_gpa + len(_LOADER_NAME) - 1
        modules = struct.pack("<4I", module_gpa, module_gpa + module_size, empty_string, 0)
    info = bytearray(_INFO_SIZE)
    upper_kib = (low_memory_top(memory_bytes) - HIGH_MEMORY_START) // KIB
    struct.pack_into("<III", info, 0, flags, LOW_MEMORY_END // KIB, upper_kib)
    struct.pack_into("<I", info, 16, command_line_gpa)
    if module_size:
        struct.pack_into("<II", info, 20, 1, modules_gpa)
    struct.pack_into("<II", info, 44, len(ranges), ranges_gpa)
    struct.pack_into("<I", info, 64, name_gpa)
    return bytes(info) + modules + ranges + _LOADER_NAME


def load_multiboot(
    image: bytes, *, memory_bytes: int, command_line: str, initrd: bytes, name: str
) -> BootImage:
    """Lay out a Multiboot kernel; the initrd becomes its one module, page-aligned."""
    check_memory_size(name, memory_bytes)
    header = find_header(image)
    if header is None:
        raise BootError(
            name, f"no valid Multiboot header in the first {SEARCH_BYTES} bytes of the file"
        )
    unknown = header.flags & _MANDATORY & ~_UNDERSTOOD
    if unknown:
        raise BootError(
            name,
            f"the Multiboot header demands features {unknown:#x} that this machine lacks (bit 2 "
            "is a video mode)",
        )
    if header.flags & _FLAG_ADDRESSES:
        placed = _load_by_addresses(image, name, header, memory_bytes)
    else:
        placed = _load_elf(image, name, memory_bytes)
    segments, entry = placed.segments, placed.entry
    text = encode_command_line(name, command_line, COMMAND_LINE_MAXIMUM)
    kernel, kernel_gpa = join_segments(segments), segments[0].gpa
    module_gpa = GuestPhysicalAddress(0)
    if initrd:
        module_gpa = place_at_top(
            name,
            "initrd",
            len(initrd),
            lowest=placed.end,
            highest=HOLE_START,
            memory_bytes=memory_bytes,
        )
        segments.append(Segment(module_gpa, initrd))
    what = "information structure"
    info_gpa = place_low(name, what, PAGE_SIZE, preferred=MULTIBOOT_INFO, occupied=placed.occupied)
    occupied = [*placed.occupied, (info_gpa, info_gpa + PAGE_SIZE)]
    text_gpa = place_low(name, "command line", len(text), preferred=COMMAND_LINE, occupied=occupied)
    extra, registers = start_protected_32(rip=entry, rbx=info_gpa, rax=LOADER_MAGIC)
    information = _information(memory_bytes, info_gpa, text_gpa, module_gpa, len(initrd))
    return BootImage(
        protocol="multiboot",
        segments=(
            *extra,
            Segment(info_gpa, information),
            Segment(text_gpa, text),
            *segments,
        ),
        registers=registers,
        e820=memory_map(memory_bytes),
        description=f"Multiboot kernel, entry {entry:#x}",
        parts=BootParts(kernel, kernel_gpa, text, initrd, module_gpa, command_line_gpa=text_gpa),
    )
