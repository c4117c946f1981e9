# SPDX-License-Identifier: Apache-2.0
"""Images in conventional memory run, and find their command line; headers just below 1 MiB."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from memvirt import EndReason, Machine, VirtualMachine
from memvirt.platform.boot.image import BootError
from tests.platform.images import multiboot_flat
from tests.small_guest import PAGING_MODES

# mov 16(%ebx), %esi; mov (%esi), %al; out %al, $0xf4: ends with the command line's first character.
_CODE = bytes.fromhex("8b7310 8a06 e6f4 f4")


@pytest.mark.parametrize("paging", PAGING_MODES)
@pytest.mark.parametrize("base", [0x1000, 0x7000, 0x10000, 0x1F000, 0x80000])
def test_an_image_below_1_mib(base: int, paging: str) -> None:
    image = multiboot_flat(base=base, entry=base + 96, code=_CODE, bss_end=base + 0x8000)
    scatter = None if paging == "flat" else 3
    with VirtualMachine(Machine("32M", scatter_seed=scatter), memory="16M", paging=paging) as vm:
        vm.load(image, append="\x10")
        assert vm.run(timeout=60).reason is EndReason.SUCCESS


@pytest.mark.parametrize("layout", ["separate-code", "noseparate-code"])
@pytest.mark.parametrize("bits", [32, 64])
def test_headers_that_the_linker_puts_below_1_mib(bits: int, layout: str, tmp_path: Path) -> None:
    """As `ld -Ttext=0x100000` does, in a segment of their own or before the code in its segment."""
    source, linked = tmp_path / "guest.o", tmp_path / "guest"
    header = ".long 0x1BADB002, 0, -0x1BADB002" if bits == 32 else ""
    text = f".text; {header}; .globl start; start: mov $0x10, %al; out %al, $0xF4; 1: jmp 1b\n"
    subprocess.run(["as", f"--{bits}", "-o", source, "-"], input=text.encode(), check=True)
    emulation = "elf_i386" if bits == 32 else "elf_x86_64"
    subprocess.run(
        ["ld", "-m", emulation, "-z", layout, "-Ttext=0x100000", "-e", "start", "-o", linked,
         source],
        check=True,
    )  # fmt: skip
    image = linked.read_bytes()
    below = 0xFF000.to_bytes(8 if bits == 64 else 4, "little")
    assert below in image[:200]  # the segment's physical address
    with VirtualMachine(Machine("32M"), memory="16M", paging="nested") as vm:
        vm.load(image)
        assert vm.run(timeout=60).reason is EndReason.SUCCESS
    code_below = image[:0x800] + b"\x90" + image[0x801:]  # between the headers and 1 MiB
    with VirtualMachine(Machine("32M"), memory="16M", paging="nested") as vm:
        if layout == "noseparate-code":
            with pytest.raises(BootError, match="0xff000"):
                vm.load(code_below)
