# SPDX-License-Identifier: Apache-2.0
"""Find out how an image wants to be started, and do it."""

from dataclasses import replace
from pathlib import Path

from memvirt.input_file import IMAGE_BYTES, InputFileError, read_input
from memvirt.platform.boot.elf import load_elf
from memvirt.platform.boot.elf_format import CLASS_64, elf_class, is_elf
from memvirt.platform.boot.firmware import firmware_segments
from memvirt.platform.boot.flat import load_flat
from memvirt.platform.boot.image import BootError, BootImage
from memvirt.platform.boot.linux import is_bzimage, load_linux
from memvirt.platform.boot.multiboot import find_header, load_multiboot
from memvirt.platform.boot.protocol import Protocol

ACCEPTED = (
    "a Linux bzImage (x86-64), a Multiboot kernel, an ELF64 x86-64 executable, or, when asked for "
    "by name, a flat image"
)


_LOADERS = {
    Protocol.LINUX: load_linux,
    Protocol.ELF: load_elf,
    Protocol.MULTIBOOT: load_multiboot,
    Protocol.FLAT: load_flat,
}


def detect_protocol(image: bytes, name: str) -> Protocol:
    """The protocol of ``image``: bzImage magic, Multiboot header, ELF64, in that order."""
    if is_bzimage(image):
        return Protocol.LINUX
    if find_header(image) is not None:
        return Protocol.MULTIBOOT
    if is_elf(image):
        if elf_class(image) in (0, CLASS_64):
            return Protocol.ELF
        raise BootError(
            name, f"a 32-bit ELF file without a Multiboot header; accepted are {ACCEPTED}"
        )
    raise BootError(name, f"not a bootable image; accepted are {ACCEPTED}")


def _read(source: str | Path | bytes, name: str, what: str) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return read_input(source, most=IMAGE_BYTES)
    except InputFileError as error:
        reason = str(error).removeprefix(f"{name}: ")
        raise BootError(name, f"cannot read the {what}: {reason}") from error


def load_boot_image(
    source: str | Path | bytes,
    *,
    memory_bytes: int,
    command_line: str = "",
    initrd: str | Path | bytes = b"",
    protocol: Protocol = Protocol.AUTO,
) -> BootImage:
    """Prepare the image at ``source`` (a path, or its bytes) for ``memory_bytes`` of RAM."""
    name = "<image>" if isinstance(source, bytes) else str(source)
    image = _read(source, name, "image")
    if not image:
        raise BootError(name, f"the file is empty; accepted are {ACCEPTED}")
    initrd_name = "<initrd>" if isinstance(initrd, bytes) else str(initrd)
    initrd_bytes = _read(initrd, initrd_name, "initrd")
    if protocol is Protocol.AUTO:
        protocol = detect_protocol(image, name)
    loaded = _LOADERS[protocol](
        image,
        memory_bytes=memory_bytes,
        command_line=command_line,
        initrd=initrd_bytes,
        name=name,
    )
    return replace(loaded, segments=(*firmware_segments(), *loaded.segments))
