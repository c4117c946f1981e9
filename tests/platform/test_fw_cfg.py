# SPDX-License-Identifier: Apache-2.0
"""The firmware configuration device, read through its ports."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from memvirt import Machine, VirtualMachine
from memvirt.platform.boot.detect import load_boot_image
from memvirt.platform.boot.fw_cfg_items import fw_cfg_items
from memvirt.platform.fw_cfg import fw_cfg_configure
from memvirt.platform.pc import new_pc
from memvirt.platform.ports import IO_OK, io_read, io_write
from tests.platform.images import bzimage


def item(pc: Any, key: int, size: int) -> bytes:
    assert io_write(pc, 0x510, 2, key, 0) == IO_OK
    return bytes(io_read(pc, 0x511, 1, 0) for _ in range(size))


def test_items_are_read_byte_by_byte() -> None:
    pc = new_pc()[0]
    kept = fw_cfg_configure(pc.fw_cfg, {0: b"QEMU", 0x20: b"\xfe\x01", 0x8003: b"x", 5: b""})
    assert len(kept) == 3
    assert item(pc, 0, 6) == b"QEMU\0\0"
    assert item(pc, 0, 2) == b"QE"
    assert item(pc, 0x20, 3) == b"\xfe\x01\0"
    assert item(pc, 0x4020, 2) == b"\xfe\x01"  # bit 14: with the wish to write
    assert item(pc, 0x8003, 1) == b"x"
    for absent in (5, 0x3F, 0x40, 0x7FFF, 0x8001, 0x8010, 0xBFFF):
        assert item(pc, absent, 2) == b"\0\0"
    assert io_write(pc, 0x511, 1, 7, 0) == IO_OK
    assert item(pc, 0, 4) == b"QEMU"
    assert pc.unknown_reads == pc.unknown_writes == 0
    with pytest.raises(ValueError, match="0x40"):
        fw_cfg_configure(pc.fw_cfg, {0x40: b""})


def test_a_kernel_finds_itself_and_its_files() -> None:
    image, initrd = bzimage(), b"initial files" * 100
    loaded = load_boot_image(image, memory_bytes=64 << 20, command_line="quiet", initrd=initrd)
    items = fw_cfg_items(loaded, 64 << 20)
    assert items[0x18] + items[0x11] == image
    assert items[0x12] == initrd
    assert items[0x15].endswith(b"quiet\0")
    (where,) = struct.unpack("<I", items[0x0A])
    assert any(s.gpa == where and s.data == initrd for s in loaded.segments)
    for size, data in ((0x17, 0x18), (0x08, 0x11), (0x0B, 0x12), (0x14, 0x15)):
        assert struct.unpack("<I", items[size]) == (len(items[data]),)


def test_the_file_directory_names_what_can_be_read() -> None:
    with VirtualMachine(Machine("32M"), memory="16M") as vm:
        vm.load(b"\xf4", protocol="flat")
        pc = vm.pc[0]
        (count,) = struct.unpack(">I", item(pc, 0x19, 4))
        directory = item(pc, 0x19, 4 + 64 * count)[4:]
        files = {}
        for size, key, name in struct.iter_unpack(">IHxx56s", directory):
            files[name.rstrip(b"\0")] = item(pc, key, size)
        ranges = [tuple(each) for each in struct.iter_unpack("<QQI", files[b"etc/e820"])]
        assert vm.boot_image is not None
        assert ranges == [(e.gpa, e.size, int(e.kind)) for e in vm.boot_image.e820]
