# SPDX-License-Identifier: Apache-2.0
"""Linux bzImage by the 64-bit or the 32-bit boot protocol (Linux Documentation/arch/x86/boot.rst).

A kernel that has a 64-bit entry is started there, memtest86+ from version 6 too.
"""

import struct
from dataclasses import dataclass

from memvirt.address import GuestPhysicalAddress
from memvirt.platform.boot.boot_params import SETUP_HEADER, boot_params_segments
from memvirt.platform.boot.image import (
    BOOT_PARAMS,
    BootError,
    BootImage,
    BootParts,
    Segment,
    check_fits,
    check_memory_size,
    encode_command_line,
    memory_map,
    place_at_top,
    start_long_64,
    start_protected_32,
)

_SECTOR = 512
_HEADER_MAGIC = b"HdrS"
_MAGIC_OFFSET = 0x202
_MINIMUM_VERSION = 0x020A  # first with pref_address and init_size: Linux 2.6.31
_FIRST_WITH_XLOADFLAGS = 0x020C
_MINIMUM_SIZE = 0x264  # through init_size
_HEADER_END_LIMIT = 0x290  # the zero page keeps the EDD area from here on
_KERNEL_64 = 0x01
ENTRY_64_OFFSET = 0x200

# What a Linux kernel must be told about this PC, unless the user says otherwise (docs/linux.md).
PLATFORM_PARAMETERS = (
    "panic=-1",  # a panic ends the VM (by a reset) instead of spinning for ever
)


@dataclass(frozen=True, slots=True)
class SetupHeader:
    """The fields of a bzImage's setup header that a loader needs."""

    payload_offset: int  # bytes from the start of the file
    payload_size: int  # bytes the header promises, less the padding to 16
    version: int
    has_64_bit_entry: bool
    initrd_addr_max: int
    command_line_maximum: int
    preferred_gpa: GuestPhysicalAddress
    init_size: int
    raw: bytes  # from SETUP_HEADER on


def is_bzimage(image: bytes) -> bool:
    """True when the file carries a Linux setup header."""
    return image[0x1FE:0x200] == b"\x55\xaa" and (
        image[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] == _HEADER_MAGIC
    )


def parse_setup_header(image: bytes, name: str) -> SetupHeader:
    """Read and validate the setup header."""
    if not is_bzimage(image):
        raise BootError(name, "not a Linux bzImage: no 55 aa at 0x1fe followed by 'HdrS' at 0x202")
    version = int.from_bytes(image[0x206:0x208], "little")
    if len(image) < 0x208:
        raise BootError(name, f"truncated bzImage: {len(image)} bytes end inside the setup header")
    if version < _MINIMUM_VERSION:
        raise BootError(
            name,
            f"boot protocol {version >> 8}.{version & 0xFF:02d}; 2.10 or later is needed "
            "(Linux 2.6.31)",
        )
    end = 0x202 + image[0x201]
    if len(image) < max(end, _MINIMUM_SIZE):
        raise BootError(name, f"truncated bzImage: {len(image)} bytes end inside the setup header")
    if not _MINIMUM_SIZE <= end <= _HEADER_END_LIMIT:
        raise BootError(
            name,
            f"the setup header ends at {end:#x}; it must end between {_MINIMUM_SIZE:#x} and "
            f"{_HEADER_END_LIMIT:#x}",
        )
    (xloadflags,) = struct.unpack_from("<H", image, 0x236)
    has_64_bit_entry = version >= _FIRST_WITH_XLOADFLAGS and xloadflags & _KERNEL_64 != 0
    (paragraphs,) = struct.unpack_from("<I", image, 0x1F4)
    (initrd_addr_max,) = struct.unpack_from("<I", image, 0x22C)
    (command_line_maximum,) = struct.unpack_from("<I", image, 0x238)
    (preferred_gpa, init_size) = struct.unpack_from("<QI", image, 0x258)
    return SetupHeader(
        payload_offset=((image[0x1F1] or 4) + 1) * _SECTOR,
        payload_size=max(16 * paragraphs - 15, ENTRY_64_OFFSET * has_64_bit_entry + 1),
        version=version,
        has_64_bit_entry=has_64_bit_entry,
        initrd_addr_max=initrd_addr_max,
        command_line_maximum=command_line_maximum,
        preferred_gpa=preferred_gpa,
        init_size=init_size,
        raw=image[SETUP_HEADER:end],
    )


def kernel_version(image: bytes) -> str:
    """The version text of a bzImage ("6.1.0 ..."), empty if it has none. memtest86+ has none."""
    (offset,) = struct.unpack_from("<H", image, 0x20E)
    if offset == 0:
        return ""
    return image[offset + 0x200 : offset + 0x300].split(b"\0")[0].decode("ascii", "replace")


def missing_parameters(image: bytes, command_line: str) -> tuple[str, ...]:
    """Those of PLATFORM_PARAMETERS to add to ``command_line``: none for other than Linux."""
    if not kernel_version(image)[:1].isdigit():
        return ()
    given = {word.split("=")[0] for word in command_line.split()}
    return tuple(p for p in PLATFORM_PARAMETERS if p.split("=")[0] not in given)


def load_linux(
    image: bytes, *, memory_bytes: int, command_line: str, initrd: bytes, name: str
) -> BootImage:
    """Lay out a bzImage: kernel at its preferred address, initrd as high as it may go."""
    check_memory_size(name, memory_bytes)
    header = parse_setup_header(image, name)
    payload = image[header.payload_offset :]
    if len(payload) < header.payload_size:
        raise BootError(
            name,
            f"truncated bzImage: the header promises a kernel of {header.payload_size} bytes at "
            f"offset {header.payload_offset}, the file holds {len(payload)}",
        )
    load_gpa = header.preferred_gpa
    kernel_end = load_gpa + max(header.init_size, len(payload))
    check_fits(name, "the kernel (init_size)", load_gpa, kernel_end, memory_bytes)
    added = missing_parameters(image, command_line)
    command_line = " ".join((*added, command_line) if command_line else added)
    text = encode_command_line(name, command_line, header.command_line_maximum)
    initrd_gpa = GuestPhysicalAddress(0)
    if initrd:
        limit = header.initrd_addr_max + 1
        initrd_gpa = place_at_top(
            name, "initrd", len(initrd), lowest=kernel_end, highest=limit, memory_bytes=memory_bytes
        )
    if header.has_64_bit_entry:
        entry = GuestPhysicalAddress(load_gpa + ENTRY_64_OFFSET)
        extra, registers = start_long_64(rip=entry, rsi=BOOT_PARAMS)
    else:
        extra, registers = start_protected_32(rip=load_gpa, rsi=BOOT_PARAMS)
    parameters = boot_params_segments(
        header=header.raw,
        load_gpa=load_gpa,
        memory_bytes=memory_bytes,
        command_line=text,
        initrd_gpa=initrd_gpa,
        initrd=initrd,
    )
    return BootImage(
        protocol="linux",
        segments=(*extra, *parameters, Segment(load_gpa, payload)),
        registers=registers,
        e820=memory_map(memory_bytes),
        description=f"Linux boot protocol {header.version >> 8}.{header.version & 0xFF:02d}, "
        f"{64 if header.has_64_bit_entry else 32}-bit entry, kernel at {load_gpa:#x}",
        parts=BootParts(
            payload, load_gpa, text, initrd, initrd_gpa, setup=image[: header.payload_offset]
        ),
        added_parameters=added,
    )
