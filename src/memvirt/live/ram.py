# SPDX-License-Identifier: Apache-2.0
"""Where a guest's RAM lies: guest-physical address -> block of RAM -> QEMU's address space -> file.

QEMU keeps RAM in *blocks*: the machine's own, and one for each pluggable module. A block is one
run of host virtual addresses. *Slots* are the runs of guest-physical addresses at which the guest
sees (parts of) a block: below and above the hole for devices under 4 GiB, for instance. A part of
a block without a slot, such as the one behind the VGA window, is memory the guest's processors
cannot reach.

The layout comes from QMP (``query-memdev``), the human monitor (``info mtree -f`` and ``gpa2hva``,
well under a millisecond each) and ``/proc/PID/maps``, and is refused unless these agree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np

from memvirt.address import (
    PAGE_BYTES,
    PAGE_SHIFT,
    GuestPhysicalAddress,
    HostVirtualAddress,
    PpnArray,
)

from .answers import understood
from .errors import LayoutError
from .process import Mapping, Process
from .qmp import Monitor

Indices = np.ndarray[Any, np.dtype[np.int64]]


class Backing(Enum):
    """What kind of memory a block is made of."""

    ANONYMOUS = "anonymous"  # private, what QEMU takes without being told otherwise
    MEMFD = "memfd"  # shared memory without a name
    SHARED_MEMORY = "shared memory"  # a file on tmpfs
    HUGETLB = "hugetlb"  # pages of a fixed large size, never swapped
    FILE = "file"  # a file on a disk


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One run of QEMU's memory. ``first_index`` numbers its first page among all RAM pages."""

    name: str  # of the memory backend: "pc.ram", "mem0"
    host_address: HostVirtualAddress
    bytes: int
    first_index: int
    backing: Backing
    shared: bool  # mapped MAP_SHARED
    merge: bool  # QEMU asks KSM to merge it (``merge`` of its backend, ``mem-merge``)
    device: str  # of the file behind it, as in /proc/PID/maps; "00:00" for anonymous memory
    inode: int
    file_offset: int  # bytes into that file
    path: str

    @property
    def pages(self) -> int:
        """Number of 4 KiB pages."""
        return self.bytes >> PAGE_SHIFT

    @property
    def ksm_can_merge(self) -> bool:
        """True if KSM would look at it: asked for, and private anonymous memory."""
        return self.merge and not self.shared and self.backing is Backing.ANONYMOUS


@dataclass(frozen=True, slots=True)
class RamSlot:
    """Guest-physical addresses ``first_gpa`` onward show ``block`` from ``block_offset`` onward."""

    first_gpa: GuestPhysicalAddress
    bytes: int
    block: RamBlock
    block_offset: int

    @property
    def end_gpa(self) -> GuestPhysicalAddress:
        """The first guest-physical address behind the slot."""
        return GuestPhysicalAddress(self.first_gpa + self.bytes)


@dataclass(frozen=True)
class RamLayout:
    """All of a VM's RAM. *RAM page indices* count the pages of its blocks, one after the other;
    arrays about a VM's pages are indexed by them, since not every page has a PPN."""

    blocks: tuple[RamBlock, ...]
    slots: tuple[RamSlot, ...]  # in ascending order of guest-physical address

    @cached_property
    def pages(self) -> int:
        """Number of 4 KiB pages of all blocks."""
        return sum(block.pages for block in self.blocks)

    @cached_property
    def guest_pages(self) -> int:
        """The first PPN above all RAM."""
        return max((slot.end_gpa for slot in self.slots), default=0) >> PAGE_SHIFT

    def slot_of(self, gpa: GuestPhysicalAddress) -> RamSlot | None:
        """The slot that holds ``gpa``, or None: a device, or nothing at all."""
        for slot in self.slots:
            if slot.first_gpa <= gpa < slot.end_gpa:
                return slot
        return None

    def host_address_of(self, gpa: GuestPhysicalAddress) -> HostVirtualAddress | None:
        """Where QEMU has the byte at ``gpa``, or None if no RAM is there."""
        slot = self.slot_of(gpa)
        if slot is None:
            return None
        offset = slot.block_offset + gpa - slot.first_gpa
        return HostVirtualAddress(slot.block.host_address + offset)

    def block_of_host(self, host_address: HostVirtualAddress) -> RamBlock | None:
        """The block that holds a host virtual address, or None."""
        for block in self.blocks:
            if block.host_address <= host_address < block.host_address + block.bytes:
                return block
        return None

    @cached_property
    def _ppns(self) -> PpnArray:
        ppns = np.full(self.pages, -1, np.int64)
        for slot in self.slots:
            first = slot.block.first_index + (slot.block_offset >> PAGE_SHIFT)
            count, ppn = slot.bytes >> PAGE_SHIFT, slot.first_gpa >> PAGE_SHIFT
            ppns[first : first + count] = np.arange(ppn, ppn + count)
        return PpnArray(ppns)

    def ppns_of(self, indices: Indices) -> PpnArray:
        """PPNs of RAM page indices; -1 where the guest cannot reach the page."""
        return self._ppns[indices]

    def indices_of(self, ppns: PpnArray) -> Indices:
        """RAM page indices of PPNs; -1 where no RAM is."""
        found = np.full(np.shape(ppns), -1, np.int64)
        for slot in self.slots:
            first = slot.first_gpa >> PAGE_SHIFT
            inside = (ppns >= first) & (ppns < slot.end_gpa >> PAGE_SHIFT)
            index = slot.block.first_index + (slot.block_offset >> PAGE_SHIFT)
            found[inside] = ppns[inside] - first + index
        return found

    def host_addresses_of(self, indices: Indices) -> Indices:
        """Host virtual addresses of RAM page indices (all within the blocks)."""
        found = np.zeros(np.shape(indices), np.int64)
        for block in self.blocks:
            inside = (indices >= block.first_index) & (indices < block.first_index + block.pages)
            offset = (indices[inside] - block.first_index) << PAGE_SHIFT
            found[inside] = offset + block.host_address
        return found


# "  0000000000100000-000000000fffffff (prio 0, ram): pc.ram @0000000000100000", also with the
# suffixes newer versions add ("KVM", "gmem=12").
_FLAT_RANGE = re.compile(
    r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (ram|rom|nv-ram)\): (.+?)"
    r"(?: @([0-9a-f]{16}))?(?: KVM| gmem=\S+)*\s*$"
)
_HOST_ADDRESS = re.compile(r"\((.*)\) is (0x[0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class FlatRange:
    """A run of guest-physical addresses by QEMU's flat view: where, how long, what it shows."""

    first_gpa: GuestPhysicalAddress
    bytes: int
    region: str
    offset: int


def parse_flat_view(text: str) -> list[FlatRange]:
    """RAM and ROM of the address space "memory", from the output of ``info mtree -f``."""
    ranges = []
    for view in text.split("FlatView #")[1:]:
        if not re.search(r'^ AS "memory", root: ', view, re.MULTILINE):
            continue
        for line in view.splitlines():
            if match := _FLAT_RANGE.match(line):
                first, last = int(match[1], 16), int(match[2], 16)
                offset = int(match[5], 16) if match[5] else 0
                ranges.append(
                    FlatRange(GuestPhysicalAddress(first), last + 1 - first, match[4], offset)
                )
        break
    return ranges


def _joined(ranges: Sequence[FlatRange]) -> list[FlatRange]:
    """Adjacent ranges of one block as one: RAM that the firmware made read-only splits them."""
    joined: list[FlatRange] = []
    for part in sorted(ranges, key=lambda item: item.first_gpa):
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.region == part.region
            and last.first_gpa + last.bytes == part.first_gpa
            and last.offset + last.bytes == part.offset
        ):
            joined[-1] = FlatRange(
                last.first_gpa, last.bytes + part.bytes, last.region, last.offset
            )
        else:
            joined.append(part)
    return joined


def _backing(mapping: Mapping) -> Backing:
    path = mapping.path.removesuffix(" (deleted)")
    if mapping.inode == 0:
        return Backing.ANONYMOUS
    if path.startswith("/anon_hugepage") or "hugepages" in path or "hugetlb" in path:
        return Backing.HUGETLB
    if path.startswith("/memfd:"):
        return Backing.MEMFD
    if path.startswith(("/dev/shm/", "/SYSV", "/dev/zero")):
        return Backing.SHARED_MEMORY
    return Backing.FILE


def _covering(mappings: Sequence[Mapping], start: int, size: int, what: str) -> Mapping:
    """The first of the mappings that cover ``size`` bytes from ``start`` without a gap."""
    inside = [item for item in mappings if item.end > start and item.start < start + size]
    at = start
    for item in inside:
        if item.start > at:
            break
        at = item.end
    if not inside or at < start + size:
        raise LayoutError(
            f"{what}: QEMU says it lies at {start:#x}, {size:#x} bytes, where /proc maps has no "
            "such memory"
        )
    return inside[0]


def read_ram_layout(monitor: Monitor, process: Process) -> RamLayout:
    """The RAM of a running VM, as it is now: hot-plugged modules come and go.

    Raises LayoutError if QEMU and the kernel disagree, and the errors of both ways to ask.
    """
    with understood(monitor.name):
        return _read_ram_layout(monitor, process)


def _read_ram_layout(monitor: Monitor, process: Process) -> RamLayout:
    backends = {item["id"]: item for item in monitor.execute("query-memdev") if item.get("id")}
    ranges = _joined(parse_flat_view(monitor.human("info mtree -f")))
    if not backends and ranges and ranges[0].first_gpa == 0:  # before QEMU 5.0
        size = monitor.execute("query-memory-size-summary")["base-memory"]
        backends = {ranges[0].region: {"size": size, "merge": True}}
    mappings = list(process.mappings())
    blocks: dict[str, RamBlock] = {}
    slots: list[RamSlot] = []
    index = 0
    for part in ranges:
        name = part.region.rpartition("/")[2]
        backend = backends.get(name)
        if backend is None:
            continue  # video memory, firmware
        if name not in blocks:
            answer = monitor.human(f"gpa2hva {part.first_gpa:#x}")
            match = _HOST_ADDRESS.search(answer)
            if match is None:
                raise LayoutError(
                    f"{monitor.name}: gpa2hva {part.first_gpa:#x}: QEMU answers {answer.strip()!r}"
                )
            what = f"{monitor.name}: RAM block {name}"
            start, size = int(match[2], 16) - part.offset, int(backend["size"])
            mapping = _covering(mappings, start, size, what)
            blocks[name] = RamBlock(
                name=name,
                host_address=HostVirtualAddress(start),
                bytes=size,
                first_index=index,
                backing=_backing(mapping),
                shared=mapping.shared,
                merge=bool(backend.get("merge", True)),
                device=mapping.device,
                inode=mapping.inode,
                file_offset=mapping.offset + start - mapping.start if mapping.inode else 0,
                path=mapping.path,
            )
            index += size // PAGE_BYTES
        slots.append(
            RamSlot(GuestPhysicalAddress(part.first_gpa), part.bytes, blocks[name], part.offset)
        )
    if not blocks:
        raise LayoutError(f"{monitor.name}: QEMU shows no RAM in its address space")
    return RamLayout(tuple(blocks.values()), tuple(slots))
