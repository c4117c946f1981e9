# SPDX-License-Identifier: Apache-2.0
"""Flat images: copied to one address and entered at their first byte.

In 64-bit mode RSI points to the Linux zero page; in 32-bit mode EBX does, which is how such an
image finds the memory map and its command line.
"""

from memvirt.address import GuestPhysicalAddress
from memvirt.platform.boot.boot_params import boot_params_segments, synthetic_header
from memvirt.platform.boot.image import (
    BOOT_PARAMS,
    COMMAND_LINE_MAXIMUM,
    HIGH_MEMORY_START,
    HOLE_START,
    BootError,
    BootImage,
    BootParts,
    Segment,
    StartMode,
    check_fits,
    check_memory_size,
    encode_command_line,
    memory_map,
    place_at_top,
    start_long_64,
    start_protected_32,
)


def load_flat(
    image: bytes,
    *,
    memory_bytes: int,
    command_line: str = "",
    initrd: bytes = b"",
    name: str = "flat image",
    load_gpa: GuestPhysicalAddress = HIGH_MEMORY_START,
    mode: StartMode = StartMode.LONG_64,
) -> BootImage:
    """Lay out ``image`` at guest physical address ``load_gpa`` and start it there."""
    check_memory_size(name, memory_bytes)
    if not image:
        raise BootError(name, "the file is empty")
    end = load_gpa + len(image)
    check_fits(name, "the flat image", load_gpa, end, memory_bytes)
    text = encode_command_line(name, command_line, COMMAND_LINE_MAXIMUM)
    initrd_gpa = GuestPhysicalAddress(0)
    if initrd:
        initrd_gpa = place_at_top(
            name, "initrd", len(initrd), lowest=end, highest=HOLE_START, memory_bytes=memory_bytes
        )
    if mode is StartMode.LONG_64:
        extra, registers = start_long_64(rip=load_gpa, rsi=BOOT_PARAMS)
    else:
        extra, registers = start_protected_32(rip=load_gpa, rbx=BOOT_PARAMS, rax=0)
    parameters = boot_params_segments(
        header=synthetic_header(),
        load_gpa=load_gpa,
        memory_bytes=memory_bytes,
        command_line=text,
        initrd_gpa=initrd_gpa,
        initrd=initrd,
    )
    return BootImage(
        protocol="flat",
        segments=(*extra, *parameters, Segment(load_gpa, image)),
        registers=registers,
        e820=memory_map(memory_bytes),
        description=f"flat image of {len(image)} bytes at {load_gpa:#x}, {mode.value}",
        parts=BootParts(image, load_gpa, text, initrd, initrd_gpa),
    )
