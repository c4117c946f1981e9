# SPDX-License-Identifier: Apache-2.0
"""The RAM layout from QEMU's own words, canned here as QEMU 7.2 prints them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from memvirt.address import GuestPhysicalAddress, HostVirtualAddress
from memvirt.live.errors import LayoutError
from memvirt.live.process import Process
from memvirt.live.ram import (
    Backing,
    FlatRange,
    RamBlock,
    RamLayout,
    RamSlot,
    parse_flat_view,
    read_ram_layout,
)

MIB = 1 << 20
GIB = 1 << 30

# A q35 machine with 5 GiB: 2 GiB below the hole, 3 GiB above 4 GiB; a module of 1 GiB plugged in.
FLAT = """FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): mem0
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000cafff (prio 0, rom): mem0 @00000000000c0000
  00000000000cb000-000000007fffffff (prio 0, ram): mem0 @00000000000cb000 KVM
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-00000001bfffffff (prio 0, ram): /objects/mem0 @0000000080000000
  00000001c0000000-00000001ffffffff (prio 0, ram): dimm0

FlatView #2
 AS "cpu-smm-0", root: memory
 Root memory region: memory
  0000000000000000-00000000000bffff (prio 0, ram): mem0
"""


def test_the_flat_view_of_memory_is_read_and_no_other() -> None:
    ranges = parse_flat_view(FLAT)
    assert ranges[0] == FlatRange(0, 0xA0000, "mem0", 0)
    assert [part.region for part in ranges] == [
        "mem0", "mem0", "mem0", "vga.vram", "pc.bios", "/objects/mem0", "dimm0",
    ]  # fmt: skip
    assert ranges[2].offset == 0xCB000
    assert sum(part.bytes for part in ranges if "mem0" in part.region) == 5 * GIB - 0x20000


def block(name: str, address: int, size: int, first: int) -> RamBlock:
    return RamBlock(
        name, HostVirtualAddress(address), size, first, Backing.ANONYMOUS, False, True, "00:00", 0,
        0, "",
    )  # fmt: skip


def layout() -> RamLayout:
    base = block("mem0", 0x7F00_0000_0000, 64 * MIB, 0)
    module = block("dimm0", 0x7E00_0000_0000, 16 * MIB, base.pages)
    return RamLayout(
        (base, module),
        (
            RamSlot(GuestPhysicalAddress(0), 0xA0000, base, 0),
            RamSlot(GuestPhysicalAddress(0xC0000), 32 * MIB - 0xC0000, base, 0xC0000),
            RamSlot(GuestPhysicalAddress(4 * GIB), 32 * MIB, base, 32 * MIB),
            RamSlot(GuestPhysicalAddress(5 * GIB), 16 * MIB, module, 0),
        ),
    )


def test_addresses_go_both_ways_and_holes_are_holes() -> None:
    ram = layout()
    assert ram.pages == 80 * 256
    assert ram.host_address_of(0xA0000) is None
    assert ram.host_address_of(4 * GIB - 1) is None
    assert ram.host_address_of(4 * GIB + 5) == 0x7F00_0000_0000 + 32 * MIB + 5
    assert ram.guest_pages == (5 * GIB + 16 * MIB) >> 12
    indices = np.arange(ram.pages)
    ppns = ram.ppns_of(indices)
    assert (ppns < 0).sum() == 0x20  # behind the VGA window
    reachable = indices[ppns >= 0]
    assert (ram.indices_of(ppns[reachable]) == reachable).all()
    assert (ram.indices_of(np.array([0xA0, 0x10_0000 - 1, 1 << 30])) == -1).all()
    addresses = ram.host_addresses_of(reachable)
    for index in (0, 5000, 64 * 256, 80 * 256 - 1 - 0x20):
        gpa = int(ppns[reachable[index]]) << 12
        assert ram.host_address_of(gpa) == addresses[index]


class CannedMonitor:
    """Answers as QEMU would, with blocks in this process's own address space."""

    name = "canned"

    def __init__(self, addresses: dict[int, int], memdevs: list[dict[str, Any]]) -> None:
        self.addresses, self.memdevs = addresses, memdevs

    def execute(self, command: str, arguments: Any = None, *, timeout: Any = None) -> Any:
        assert command == "query-memdev"
        return self.memdevs

    def human(self, line: str, *, cpu_index: int | None = None) -> str:
        if line == "info mtree -f":
            return FLAT
        gpa = int(line.split()[1], 16)
        return f"Host virtual address for {gpa:#x} (x) is {self.addresses[gpa]:#x}\r\n"

    def close(self) -> None:
        pass


def test_qemu_and_the_kernel_must_agree() -> None:
    room = np.zeros(64 * MIB, np.uint8)
    start = (room.ctypes.data + 4095) & ~4095
    devices = [{"id": "mem0", "size": 40 * MIB, "merge": False, "share": False}]
    monitor = CannedMonitor({0: start}, devices)
    with Process(os.getpid()) as process:
        ram = read_ram_layout(monitor, process)
        assert ram.blocks[0].host_address == start
        assert ram.blocks[0].backing is Backing.ANONYMOUS
        assert not ram.blocks[0].ksm_can_merge
        assert [slot.first_gpa for slot in ram.slots] == [0, 0xC0000, 4 * GIB]
        with pytest.raises(LayoutError, match="mem0: QEMU says it lies at 0x1000"):
            read_ram_layout(CannedMonitor({0: 0x1000}, devices), process)
