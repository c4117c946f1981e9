# SPDX-License-Identifier: Apache-2.0
"""What every boot protocol shares: the result types, the memory map, the low-memory layout."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from memvirt.address import GuestPhysicalAddress
from memvirt.errors import MemvirtError
from memvirt.notebook import one_line

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE_SIZE = 4 * KIB

LOW_MEMORY_END = GuestPhysicalAddress(0x9FC00)
"""End of conventional memory; the extended BIOS data area starts here."""

HIGH_MEMORY_START = GuestPhysicalAddress(MIB)
HOLE_START = GuestPhysicalAddress(3 * GIB)
"""RAM beyond 3 GiB continues at 4 GiB; devices (the local APIC) live in between."""

HOLE_END = GuestPhysicalAddress(4 * GIB)
MINIMUM_MEMORY = 2 * MIB

# Low memory as the loaders lay it out, all below the image.
BIOS_DATA = GuestPhysicalAddress(0x400)
GDT = GuestPhysicalAddress(0x500)
BOOT_PARAMS = GuestPhysicalAddress(0x7000)
STACK_TOP = GuestPhysicalAddress(0x8FF0)
PAGE_TABLES = GuestPhysicalAddress(0x9000)  # PML4, PDPT, four page directories
MULTIBOOT_INFO = GuestPhysicalAddress(0x10000)
COMMAND_LINE = GuestPhysicalAddress(0x20000)
COMMAND_LINE_MAXIMUM = 0xFFFF
LAYOUT_END = GuestPhysicalAddress(0x30000)

CODE_SELECTOR = 0x10
DATA_SELECTOR = 0x18
_CODE_32 = 0x00CF_9B00_0000_FFFF
_CODE_64 = 0x00AF_9B00_0000_FFFF
_DATA = 0x00CF_9300_0000_FFFF


class BootError(MemvirtError):
    """An image cannot be started; the message is one line naming the file and what is wrong."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(one_line(f"{name}: {problem}", 1000))
        self.name = name
        self.problem = problem


class E820Type(IntEnum):
    """Address range types (ACPI specification, table "Address Range Types")."""

    USABLE = 1
    RESERVED = 2


@dataclass(frozen=True, slots=True)
class E820Entry:
    """One range of the guest physical memory map, in bytes."""

    gpa: GuestPhysicalAddress
    size: int
    kind: E820Type

    @property
    def end(self) -> GuestPhysicalAddress:
        """First guest physical address past the range."""
        return GuestPhysicalAddress(self.gpa + self.size)


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes to copy to guest physical address ``gpa`` before the guest starts."""

    gpa: GuestPhysicalAddress
    data: bytes

    @property
    def end(self) -> GuestPhysicalAddress:
        """First guest physical address past the segment."""
        return GuestPhysicalAddress(self.gpa + len(self.data))


class StartMode(Enum):
    """Processor mode at the entry point."""

    PROTECTED_32 = "protected32"
    LONG_64 = "long64"


@dataclass(frozen=True, slots=True)
class InitialState:
    """Registers at the entry point; those not named are zero, segment bases are zero.

    The GDT is in guest memory at ``gdt_base``; CS is ``code_selector``, DS, ES, SS, FS and GS are
    ``data_selector``, all flat.
    """

    mode: StartMode
    rip: int
    rsp: int
    rsi: int
    rbx: int
    rax: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    gdt_base: int
    gdt_limit: int
    code_selector: int = CODE_SELECTOR
    data_selector: int = DATA_SELECTOR
    rflags: int = 2


@dataclass(frozen=True, slots=True)
class BootParts:
    """What a kernel was started from, as the firmware configuration device shows it.

    ``kernel`` lies at ``kernel_gpa``; ``setup`` is the real-mode part of a bzImage. The command
    line ends with NUL. Addresses of what is empty mean nothing.
    """

    kernel: bytes
    kernel_gpa: GuestPhysicalAddress
    command_line: bytes
    initrd: bytes
    initrd_gpa: GuestPhysicalAddress
    setup: bytes = b""
    command_line_gpa: GuestPhysicalAddress = COMMAND_LINE


@dataclass(frozen=True, slots=True)
class BootImage:
    """A guest ready to start: what to copy where, and the registers to start with.

    Memory outside ``segments`` must be zero (an image's uninitialised data is not a segment).
    ``added_parameters`` are those that memvirt itself put on the kernel command line.
    """

    protocol: str
    segments: tuple[Segment, ...]
    registers: InitialState
    e820: tuple[E820Entry, ...]
    description: str
    parts: BootParts
    added_parameters: tuple[str, ...] = ()


def join_segments(segments: Sequence[Segment]) -> bytes:
    """The bytes from the lowest segment's begin to the highest's end, zeroes between them."""
    start = min(segment.gpa for segment in segments)
    joined = bytearray(max(segment.end for segment in segments) - start)
    for segment in segments:
        joined[segment.gpa - start : segment.end - start] = segment.data
    return bytes(joined)


def low_memory_top(memory_bytes: int) -> int:
    """End of the RAM below 4 GiB."""
    return min(memory_bytes, HOLE_START)


def memory_map(memory_bytes: int) -> tuple[E820Entry, ...]:
    """The PC's memory map for ``memory_bytes`` of RAM; RAM beyond 3 GiB appears at 4 GiB."""
    entries = [
        E820Entry(GuestPhysicalAddress(0), LOW_MEMORY_END, E820Type.USABLE),
        E820Entry(LOW_MEMORY_END, MIB - LOW_MEMORY_END, E820Type.RESERVED),
        E820Entry(HIGH_MEMORY_START, low_memory_top(memory_bytes) - MIB, E820Type.USABLE),
    ]
    if memory_bytes > HOLE_START:
        entries.append(E820Entry(HOLE_END, memory_bytes - HOLE_START, E820Type.USABLE))
    return tuple(entries)


def check_memory_size(name: str, memory_bytes: int) -> None:
    """Refuse memory sizes no protocol here can describe."""
    if memory_bytes < MINIMUM_MEMORY or memory_bytes % PAGE_SIZE:
        raise BootError(
            name,
            f"guest memory is {memory_bytes} bytes; it must be a multiple of {PAGE_SIZE} and at "
            f"least {MINIMUM_MEMORY}",
        )


def check_fits(
    name: str, what: str, start: int, end: int, memory_bytes: int, *, lowest: int = LAYOUT_END
) -> None:
    """Refuse a range outside RAM: conventional memory from ``lowest`` on, which the loaders leave
    free, and what lies between 1 MiB and the top of low memory."""
    top = low_memory_top(memory_bytes)
    if lowest <= start and end <= LOW_MEMORY_END:
        return
    if start < HIGH_MEMORY_START or end > top:
        raise BootError(
            name,
            f"{what} needs guest physical memory {start:#x}-{end:#x}, but an image may use only "
            f"{lowest:#x}-{LOW_MEMORY_END:#x} and {HIGH_MEMORY_START:#x}-{top:#x} "
            f"({memory_bytes // MIB} MiB of guest memory)",
        )


def place_low(
    name: str,
    what: str,
    size: int,
    *,
    preferred: GuestPhysicalAddress,
    occupied: Sequence[tuple[int, int]],
) -> GuestPhysicalAddress:
    """Address for ``size`` bytes of the loader's in conventional memory: ``preferred``, or the
    lowest page where none of the ``occupied`` ranges (start, end) is."""
    for start in (preferred, *range(PAGE_SIZE, LOW_MEMORY_END - size, PAGE_SIZE)):
        if all(start + size <= first or start >= end for first, end in occupied):
            return GuestPhysicalAddress(start)
    raise BootError(
        name, f"the image leaves no room for the {what} ({size} bytes) below {LOW_MEMORY_END:#x}"
    )


def place_at_top(
    name: str, what: str, size: int, *, lowest: int, highest: int, memory_bytes: int
) -> GuestPhysicalAddress:
    """Page-aligned address for ``size`` bytes, as high as possible in [lowest, highest)."""
    top = min(low_memory_top(memory_bytes), highest)
    lowest = max(lowest, HIGH_MEMORY_START)
    start = (top - size) & -PAGE_SIZE
    if start < lowest:
        raise BootError(
            name,
            f"the {what} of {size} bytes does not fit: only {max(top - lowest, 0)} bytes are free "
            f"above the kernel ({lowest:#x}-{top:#x})",
        )
    return GuestPhysicalAddress(start)


def encode_command_line(name: str, command_line: str, maximum: int) -> bytes:
    """The command line as the guest reads it, NUL-terminated. Raises BootError."""
    try:
        encoded = command_line.encode()
    except UnicodeEncodeError as error:
        raise BootError(
            name, f"the command line is no text: its character {error.start + 1} is no Unicode"
        ) from error
    if b"\0" in encoded:
        raise BootError(name, "the command line contains a NUL character")
    if len(encoded) > maximum:
        raise BootError(
            name, f"the command line has {len(encoded)} bytes; this image takes at most {maximum}"
        )
    return encoded + b"\0"


def _identity_page_tables() -> Segment:
    """2 MiB pages mapping the low 4 GiB onto itself (AMD64 APM vol. 2, section 5.3)."""
    present_writable, large = 0x3, 0x80
    directories = PAGE_TABLES + 2 * PAGE_SIZE
    pml4 = struct.pack("<Q", PAGE_TABLES + PAGE_SIZE | present_writable).ljust(PAGE_SIZE, b"\0")
    pdpt = struct.pack(
        "<4Q", *(directories + i * PAGE_SIZE | present_writable for i in range(4))
    ).ljust(PAGE_SIZE, b"\0")
    pages = struct.pack("<2048Q", *(i << 21 | present_writable | large for i in range(2048)))
    return Segment(PAGE_TABLES, pml4 + pdpt + pages)


def start_protected_32(
    *, rip: GuestPhysicalAddress, rbx: int = 0, rax: int = 0, rsi: int = 0
) -> tuple[list[Segment], InitialState]:
    """Flat 32-bit protected mode, paging off: segments to add and registers."""
    gdt = struct.pack("<4Q", 0, 0, _CODE_32, _DATA)
    state = InitialState(
        mode=StartMode.PROTECTED_32,
        rip=rip,
        rsp=STACK_TOP,
        rsi=rsi,
        rbx=rbx,
        rax=rax,
        cr0=0x11,  # PE, ET
        cr3=0,
        cr4=0,
        efer=0,
        gdt_base=GDT,
        gdt_limit=len(gdt) - 1,
    )
    return [Segment(GDT, gdt)], state


def start_long_64(*, rip: GuestPhysicalAddress, rsi: int) -> tuple[list[Segment], InitialState]:
    """64-bit mode with the low 4 GiB identity-mapped: segments to add and registers."""
    gdt = struct.pack("<4Q", 0, 0, _CODE_64, _DATA)
    state = InitialState(
        mode=StartMode.LONG_64,
        rip=rip,
        rsp=STACK_TOP,
        rsi=rsi,
        rbx=0,
        rax=0,
        cr0=0x8000_0011,  # PG, PE, ET
        cr3=PAGE_TABLES,
        cr4=0x20,  # PAE
        efer=0x500,  # LME, LMA
        gdt_base=GDT,
        gdt_limit=len(gdt) - 1,
    )
    return [Segment(GDT, gdt), _identity_page_tables()], state
