# SPDX-License-Identifier: Apache-2.0
"""Boot loaders on generated images: what a good image gives, and that a bad one is refused."""

import struct
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.platform.boot.detect import load_boot_image
from memvirt.platform.boot.flat import load_flat
from memvirt.platform.boot.image import BootError, BootImage, E820Type, StartMode, memory_map
from memvirt.platform.boot.protocol import Protocol

from . import images

MIB = 1 << 20
GIB = 1 << 30


def load(
    image: bytes,
    *,
    mib: int = 64,
    command_line: str = "",
    initrd: bytes = b"",
    protocol: Protocol = Protocol.AUTO,
) -> BootImage:
    boot = load_boot_image(
        image,
        memory_bytes=mib * MIB,
        command_line=command_line,
        initrd=initrd,
        protocol=protocol,
    )
    check_consistent(boot, mib * MIB)
    return boot


def check_consistent(boot: BootImage, memory_bytes: int) -> None:
    """Segments lie in RAM (or the BIOS data area) and do not overlap; the entry is loaded."""
    ordered = sorted(boot.segments, key=lambda segment: segment.gpa)
    for lower, upper in pairwise(ordered):
        assert lower.end <= upper.gpa
    assert ordered[-1].end <= min(memory_bytes, 3 * GIB)
    assert any(s.gpa <= boot.registers.rip < s.end for s in ordered)
    assert boot.e820 == memory_map(memory_bytes)


def byte_range(boot: BootImage, gpa: int, size: int) -> bytes:
    for segment in boot.segments:
        if segment.gpa <= gpa and gpa + size <= segment.end:
            return segment.data[gpa - segment.gpa :][:size]
    raise AssertionError(f"nothing loaded at {gpa:#x}")


def u32(boot: BootImage, gpa: int) -> int:
    return int.from_bytes(byte_range(boot, gpa, 4), "little")


def c_string(boot: BootImage, gpa: int) -> bytes:
    text = b""
    while (letter := byte_range(boot, gpa + len(text), 1)) != b"\0":
        text += letter
    return text


@pytest.mark.parametrize("memory", [2 * MIB, 64 * MIB, 3 * GIB, 3 * GIB + 4096, 8 * GIB])
def test_memory_map_accounts_for_all_memory(memory: int) -> None:
    entries = memory_map(memory)
    usable = sum(entry.size for entry in entries if entry.kind is E820Type.USABLE)
    assert usable == memory - (MIB - 0x9FC00)
    assert all(a.end <= b.gpa for a, b in pairwise(entries))
    assert not any(e.gpa < 4 * GIB and e.end > 3 * GIB for e in entries)


def test_linux_registers_and_zero_page() -> None:
    initrd = bytes(range(256)) * 20
    boot = load(images.bzimage(), command_line="console=ttyS0", initrd=initrd)
    state = boot.registers
    assert (boot.protocol, state.mode, state.rip) == ("linux", StartMode.LONG_64, 0x100200)
    assert (state.code_selector, state.data_selector, state.rflags) == (0x10, 0x18, 2)
    page = state.rsi
    assert byte_range(boot, page + 0x202, 4) == b"HdrS"
    assert byte_range(boot, page + 0x210, 1) == b"\xff"
    assert c_string(boot, u32(boot, page + 0x228)) == b"console=ttyS0"
    initrd_gpa = u32(boot, page + 0x218)
    assert initrd_gpa == 64 * MIB - 0x2000
    assert byte_range(boot, initrd_gpa, u32(boot, page + 0x21C)) == initrd
    assert byte_range(boot, page + 0x1E8, 1) == bytes([len(boot.e820)])
    for i, entry in enumerate(boot.e820):
        raw = byte_range(boot, page + 0x2D0 + 20 * i, 20)
        assert struct.unpack("<QQI", raw) == (entry.gpa, entry.size, entry.kind)


def test_gdt_and_identity_map() -> None:
    boot = load(images.bzimage())
    state = boot.registers
    code = struct.unpack("<Q", byte_range(boot, state.gdt_base + 0x10, 8))[0]
    assert code >> 53 & 1 == 1  # L: 64-bit code
    assert state.gdt_limit == 31
    for gpa in (0, 0x100200, 0x3FFFFFFF, 0x40000000, 0xFEE00000, 0xFFFFFFFF):
        table = state.cr3
        for shift in (39, 30):
            entry = struct.unpack("<Q", byte_range(boot, table + (gpa >> shift & 511) * 8, 8))[0]
            assert entry & 1
            table = entry & ~0xFFF
        leaf = struct.unpack("<Q", byte_range(boot, table + (gpa >> 21 & 511) * 8, 8))[0]
        assert leaf & 0x83 == 0x83
        assert (leaf & ~0x1FFFFF) + (gpa & 0x1FFFFF) == gpa


def test_initrd_respects_the_kernels_limit() -> None:
    boot = load(images.bzimage(initrd_addr_max=0x1FFFFFF), initrd=bytes(4096))
    assert u32(boot, boot.registers.rsi + 0x218) == 0x1FFF000


def test_elf_entry_is_translated_to_physical() -> None:
    boot = load(images.elf64())
    assert boot.registers.rip == 0x100010
    assert boot.registers.mode is StartMode.LONG_64
    assert byte_range(boot, boot.registers.rsi + 0x202, 4) == b"HdrS"


def test_elf_entry_already_physical() -> None:
    assert load(images.elf64(entry=0x100020)).registers.rip == 0x100020


def test_multiboot_machine_state_and_information() -> None:
    boot = load(images.multiboot_elf32(), command_line="a b", initrd=b"module")
    state = boot.registers
    assert (state.mode, state.rip, state.rax) == (StartMode.PROTECTED_32, 0x100010, 0x2BADB002)
    assert state.cr0 & 0x80000001 == 1
    info = state.rbx
    flags = u32(boot, info)
    assert flags == 0x24D  # memory, command line, modules, memory map, loader name
    assert (u32(boot, info + 4), u32(boot, info + 8)) == (639, 63 * 1024)
    assert c_string(boot, u32(boot, info + 16)) == b"a b"
    assert u32(boot, info + 20) == 1
    module = u32(boot, info + 24)
    start, end = u32(boot, module), u32(boot, module + 4)
    assert start % 4096 == 0
    assert byte_range(boot, start, end - start) == b"module"
    assert c_string(boot, u32(boot, module + 8)) == b""
    assert c_string(boot, u32(boot, info + 64)) == b"memvirt"
    length, at = u32(boot, info + 44), u32(boot, info + 48)
    ranges = list(struct.iter_unpack("<IQQI", byte_range(boot, at, length)))
    assert ranges == [(20, e.gpa, e.size, e.kind) for e in boot.e820]


@pytest.mark.parametrize("kernel", [{"xloadflags": 0}, {"version": 0x20B}])
def test_a_kernel_without_64_bit_entry_starts_in_protected_mode(kernel: dict[str, int]) -> None:
    boot = load(images.bzimage(**kernel), command_line="quiet", initrd=b"files")
    assert boot.registers.mode is StartMode.PROTECTED_32
    assert boot.registers.rip == 0x100000
    assert (boot.registers.rbx, boot.registers.cr0) == (0, 0x11)
    assert c_string(boot, u32(boot, boot.registers.rsi + 0x228)) == b"quiet"
    assert byte_range(boot, u32(boot, boot.registers.rsi + 0x218), 5) == b"files"


def test_multiboot_without_module_says_so() -> None:
    boot = load(images.multiboot_elf32())
    assert u32(boot, boot.registers.rbx) & 8 == 0


@pytest.mark.parametrize("load_end", [0, 0x100100])
def test_multiboot_by_addresses(load_end: int) -> None:
    image = images.multiboot_flat(load_end=load_end, bss_end=0x200000)
    boot = load(image)
    wanted = image[: load_end - 0x100000] if load_end else image
    assert byte_range(boot, 0x100000, len(wanted)) == wanted
    assert boot.registers.rip == 0x100080


def test_multiboot_header_is_found_anywhere_aligned_in_8_kib() -> None:
    image = images.multiboot_flat(padding=8192 - 32, entry=0x102000)
    assert load(image).protocol == "multiboot"
    with pytest.raises(BootError, match="not a bootable image"):
        load(images.multiboot_flat(padding=8192))


def test_an_image_may_lie_in_conventional_memory() -> None:
    """A Multiboot image from the second page on: the loader's own data makes room."""
    image = images.multiboot_flat(base=0x10000, bss_end=0x25000)
    boot = load(image, command_line="quiet")
    assert boot.registers.rip == 0x10080
    assert byte_range(boot, 0x10000, len(image)) == image
    info = boot.registers.rbx
    text = u32(boot, info + 16)
    assert c_string(boot, text) == b"quiet"
    assert not 0x10000 <= info < 0x25000
    assert not 0x10000 <= text < 0x25000
    boot = load(images.elf64(paddr=0x40000))
    assert boot.registers.rip >= 0x40000
    with pytest.raises(BootError, match="leaves no room for the information structure"):
        load(images.multiboot_flat(base=0x1000, bss_end=0x9FC00))


def test_flat_only_by_name() -> None:
    with pytest.raises(BootError, match=r"not a bootable image.*flat"):
        load(b"\xf4" * 100)
    boot = load(b"\xf4" * 100, protocol=Protocol.FLAT)
    assert (boot.registers.rip, boot.registers.mode) == (MIB, StartMode.LONG_64)
    boot = load_flat(b"\xf4", memory_bytes=16 * MIB, load_gpa=0x200000, mode=StartMode.PROTECTED_32)
    assert (boot.registers.rip, boot.registers.cr0) == (0x200000, 0x11)


REFUSED = [
    (b"", {}, "empty"),
    (images.bzimage(version=0x209), {}, "boot protocol 2.09"),
    (images.bzimage(init_size=65 * MIB), {}, "0x100000-0x4200000"),
    (images.bzimage(preferred=0x1000), {}, "needs guest physical memory 0x1000-"),
    (images.bzimage(), {"initrd": bytes(64 * MIB)}, "initrd of 67108864 bytes does not fit"),
    (images.bzimage(), {"command_line": "x" * 256}, "at most 255"),
    (images.bzimage(), {"command_line": "a\0b"}, "NUL"),
    (images.bzimage(), {"mib": 1}, "guest memory is 1048576 bytes"),
    (images.elf64(machine=183), {}, "machine 183"),
    (images.elf64(kind=3), {}, "shared object or PIE"),
    (images.elf64(program_type=2), {}, "no loadable segment"),
    (images.elf64(extra_memory=64 * MIB), {}, "64 MiB of guest memory"),
    (images.elf64(paddr=0), {}, "needs guest physical memory 0x0-"),
    (images.elf64(entry=0x5000), {}, "entry point 0x5000"),
    (images.elf64(copies=2), {}, "overlap"),
    (images.elf64(), {"initrd": bytes(64 * MIB)}, "does not fit"),
    (images.multiboot_elf32(flags=4), {}, "features 0x4"),
    (images.multiboot_flat(entry=0x5000), {}, "entry_addr"),
    # Found by the corruption test below: an entry in uninitialised data would execute zeros.
    (images.multiboot_flat(bss_end=0x200000, entry=0x180000), {}, "entry_addr 0x180000"),
    (images.elf64(entry=0x100800), {}, "entry point 0x100800"),
    (images.elf64(entry=0xFFFFFFFF80100800), {}, "entry point 0xffffffff80100800"),
    (images.multiboot_flat(load_end=0x200000), {}, "truncated"),
    (images.multiboot_flat(load_end=0x1000), {}, "load_end_addr"),
    (images.multiboot_flat(bss_end=0x8000000), {}, "64 MiB of guest memory"),
    (images.multiboot_header(3) + bytes(100), {}, "not ELF must give its addresses"),
    (images.elf64().replace(b"ELF\x02", b"ELF\x01"), {}, "32-bit ELF file"),
]


@pytest.mark.parametrize(("image", "options", "message"), REFUSED)
def test_refusals_say_what_is_wrong(image: bytes, options: dict[str, object], message: str) -> None:
    with pytest.raises(BootError) as caught:
        load(image, **options)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("<image>: ")


def test_errors_name_the_file(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    kernel = tmp_path / "kernel"
    kernel.write_bytes(images.bzimage())
    for path in (empty, tmp_path / "missing", tmp_path):
        with pytest.raises(BootError, match=f"^{path}: "):
            load_boot_image(path, memory_bytes=64 * MIB)
    with pytest.raises(BootError, match=f"^{tmp_path / 'missing'}: cannot read the initrd"):
        load_boot_image(kernel, memory_bytes=64 * MIB, initrd=tmp_path / "missing")
    assert load_boot_image(str(kernel), memory_bytes=64 * MIB).protocol == "linux"


ALL_IMAGES = [
    images.bzimage(),
    images.elf64(),
    images.multiboot_elf32(),
    images.multiboot_flat(),
    images.multiboot_flat(load_end=0x100100, bss_end=0x200000),
]
NAMED = [Protocol.LINUX, Protocol.ELF, Protocol.MULTIBOOT, Protocol.FLAT, Protocol.AUTO]


@pytest.mark.parametrize("image", ALL_IMAGES)
def test_every_prefix_loads_or_is_refused(image: bytes) -> None:
    for size in range(len(image)):
        for protocol in NAMED:
            with suppress(BootError):
                load(image[:size], protocol=protocol)


def test_no_prefix_of_sized_images_loads() -> None:
    """Formats that state their size: every truncation is noticed."""
    bz = images.bzimage()
    for image, slack in ((bz, 15), (images.elf64(), 0), (images.multiboot_elf32(), 0)):
        for size in range(len(image) - slack):
            with pytest.raises(BootError):
                load(image[:size])


@settings(max_examples=1000, deadline=None)
@given(
    st.sampled_from(ALL_IMAGES),
    st.lists(st.tuples(st.integers(0, 0x300), st.integers(0, 255)), min_size=1, max_size=6),
    st.sampled_from(NAMED),
)
def test_corrupted_images_load_consistently_or_are_refused(
    image: bytes, changes: list[tuple[int, int]], protocol: Protocol
) -> None:
    damaged = bytearray(image)
    for offset, value in changes:
        damaged[offset % len(damaged)] = value
    with suppress(BootError):
        load(bytes(damaged), protocol=protocol, initrd=b"initrd", command_line="x")
