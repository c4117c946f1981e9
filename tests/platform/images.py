# SPDX-License-Identifier: Apache-2.0
"""Small generated boot images."""

import struct

CODE = b"\xf4" * 300


def bzimage(
    *,
    payload: bytes = b"\x90" * 0x400,
    version: int = 0x020F,
    xloadflags: int = 1,
    preferred: int = 0x100000,
    init_size: int = 0x10000,
    initrd_addr_max: int = 0x7FFFFFFF,
) -> bytes:
    """A bzImage with one setup sector."""
    setup = bytearray(0x400)
    setup[0x1F1] = 1
    struct.pack_into("<I", setup, 0x1F4, len(payload) // 16)
    setup[0x1FE:0x206] = b"\x55\xaa\xeb\x66HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    setup[0x211] = 1
    struct.pack_into("<I", setup, 0x22C, initrd_addr_max)
    struct.pack_into("<H", setup, 0x236, xloadflags)
    struct.pack_into("<I", setup, 0x238, 255)
    struct.pack_into("<QI", setup, 0x258, preferred, init_size)
    return bytes(setup) + payload


def elf64(
    *,
    paddr: int = 0x100000,
    vaddr: int = 0xFFFFFFFF80100000,
    entry: int = 0xFFFFFFFF80100010,
    machine: int = 62,
    kind: int = 2,
    program_type: int = 1,
    extra_memory: int = 0x1000,
    copies: int = 1,
) -> bytes:
    """An ELF64 executable with ``copies`` identical segments."""
    start = 64 + 56 * copies
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56, copies, 0, 0, 0
    )
    program = struct.pack(
        "<IIQQQQQQ", program_type, 5, start, vaddr, paddr, len(CODE), len(CODE) + extra_memory, 16
    )
    return header + program * copies + CODE


def multiboot_header(flags: int, *addresses: int) -> bytes:
    """A Multiboot header with right checksum."""
    magic = 0x1BADB002
    checksum = -(magic + flags) & 0xFFFFFFFF
    return struct.pack(f"<III{len(addresses)}I", magic, flags, checksum, *addresses)


def multiboot_elf32(flags: int = 3) -> bytes:
    """An ELF32 Multiboot kernel loaded by its program header."""
    body = multiboot_header(flags) + CODE
    ident = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0x100010, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    program = struct.pack("<IIIIIIII", 1, 84, 0x100000, 0x100000, len(body), len(body) + 64, 5, 4)
    return header + program + body


def multiboot_flat(
    *,
    padding: int = 64,
    load_end: int = 0,
    bss_end: int = 0,
    base: int = 0x100000,
    entry: int = 0,
    code: bytes = CODE,
) -> bytes:
    """A Multiboot kernel placed by the header's address fields; the header is at ``padding``, the
    code 32 bytes behind that."""
    entry = entry or base + 0x80
    header = multiboot_header(0x10003, base + padding, base, load_end, bss_end, entry)
    return bytes(padding) + header + code
