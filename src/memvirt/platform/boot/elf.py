# SPDX-License-Identifier: Apache-2.0
"""ELF64 executables, started like a Linux vmlinux: 64-bit entry, RSI = zero page.

This is the convention of Firecracker and crosvm: the Linux 64-bit boot protocol with the ELF entry
point instead of the bzImage's.
"""

from memvirt.address import GuestPhysicalAddress
from memvirt.platform.boot.boot_params import boot_params_segments, synthetic_header
from memvirt.platform.boot.elf_format import (
    CLASS_64,
    MACHINE_X86_64,
    parse_elf,
    place_loads,
)
from memvirt.platform.boot.image import (
    BOOT_PARAMS,
    COMMAND_LINE_MAXIMUM,
    HOLE_START,
    BootImage,
    BootParts,
    check_memory_size,
    encode_command_line,
    join_segments,
    memory_map,
    place_at_top,
    start_long_64,
)


def load_elf(
    image: bytes, *, memory_bytes: int, command_line: str, initrd: bytes, name: str
) -> BootImage:
    """Lay out an ELF64 x86-64 executable at its physical addresses."""
    check_memory_size(name, memory_bytes)
    executable = parse_elf(image, name, expected_class=CLASS_64, machine=MACHINE_X86_64)
    segments, end = place_loads(image, name, executable, memory_bytes)
    text = encode_command_line(name, command_line, COMMAND_LINE_MAXIMUM)
    initrd_gpa = GuestPhysicalAddress(0)
    if initrd:
        initrd_gpa = place_at_top(
            name, "initrd", len(initrd), lowest=end, highest=HOLE_START, memory_bytes=memory_bytes
        )
    entry = executable.entry_gpa(name)
    extra, registers = start_long_64(rip=entry, rsi=BOOT_PARAMS)
    parameters = boot_params_segments(
        header=synthetic_header(),
        load_gpa=segments[0].gpa if segments else entry,
        memory_bytes=memory_bytes,
        command_line=text,
        initrd_gpa=initrd_gpa,
        initrd=initrd,
    )
    return BootImage(
        protocol="elf",
        segments=(*extra, *parameters, *segments),
        registers=registers,
        e820=memory_map(memory_bytes),
        description=f"ELF64 executable, {len(segments)} segments, entry {entry:#x}",
        parts=BootParts(join_segments(segments), segments[0].gpa, text, initrd, initrd_gpa),
    )
