# SPDX-License-Identifier: Apache-2.0
"""The memory of a live VM, copied once into a LiME file, to be analyzed as any dump.

The VM is not stopped: each page is as it was at some moment of the copy. A page without a frame
reads as zeroes in the guest and is a hole of the file; nothing is allocated for it. What the host
has swapped, what a pager keeps, and what this user may not see is left out and counted, not brought
back. Just before each piece is read, the states of its pages are looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from memvirt.address import PAGE_BYTES, GuestPhysicalAddress, HostVirtualAddress
from memvirt.live.content import GuestContent
from memvirt.live.discovery import DiscoveredVm
from memvirt.live.errors import LiveError
from memvirt.live.kernel_pages import KernelPages
from memvirt.live.page_states import LivePageState, has_pager, read_page_states
from memvirt.live.ram import RamLayout, RamSlot
from memvirt.live.runs import runs_of
from memvirt.live.vm import LiveVm

from .lime import write_header

_PIECE_BYTES = 16 << 20
_READ = (LivePageState.PRIVATE, LivePageState.SHARED)
_HOLES = (LivePageState.UNTOUCHED, LivePageState.ZERO)
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LiveCopy:
    """Pages of a VM: ``read``, ``empty`` (without a frame, or of the host's zero page), and what is
    not in the copy: ``swapped``, ``paged`` (kept by a pager) and ``unseen`` (this user may not tell
    what is there)."""

    name: str
    path: Path
    read: int
    empty: int
    swapped: int
    paged: int
    unseen: int

    @property
    def missing(self) -> int:
        """Pages that are not in the copy."""
        return self.swapped + self.paged + self.unseen


def copy_live_vm(
    found: DiscoveredVm, folder: Path, bytes_a_second: float, kernel: KernelPages | None,
    progress: Callable[[int, int], None],
) -> LiveCopy:  # fmt: skip
    """Copy what is in the machine memory of a VM, at most so fast. ``progress``: bytes looked at,
    and in all. Raises LiveError, OSError for the file."""
    path = folder / f"{found.pid}.lime"
    counts = dict.fromkeys(("read", "empty", "swapped", "paged", "unseen"), 0)
    with LiveVm(found) as vm, path.open("xb") as file:
        vm.release_monitor()  # others may want it; the layout is known
        total = sum(slot.bytes for slot in vm.layout.slots)
        done, began = 0, time.monotonic()
        for piece in _pieces(vm.layout):
            paged = has_pager(vm.process, piece.block)
            states = read_page_states(
                vm.process, RamLayout((piece.block,), ()), vm.pagemap, kernel
            ).state
            empty = np.isin(states, _HOLES) & (not paged)
            read = np.isin(states, _READ)
            counts["paged"] += int(np.isin(states, _HOLES).sum()) if paged else 0
            counts["empty"] += int(empty.sum())
            counts["read"] += int(read.sum())
            counts["swapped"] += int((states == LivePageState.SWAPPED).sum())
            counts["unseen"] += int((states == LivePageState.UNKNOWN).sum())
            _write(file, vm, piece, read, empty | read)
            done += piece.bytes
            progress(done, total)
            ahead = counts["read"] * PAGE_BYTES / bytes_a_second - (time.monotonic() - began)
            if ahead > 0:
                time.sleep(ahead)
        file.truncate(file.tell())
    if not counts["read"] + counts["empty"]:
        path.unlink()
        raise LiveError(
            f"{found.name}: no page of its memory can be read here ({counts['unseen']} that this "
            f"user may not see, {counts['swapped']} swapped, {counts['paged']} kept by a pager)"
        )
    return LiveCopy(found.name, path, **counts)


def _pieces(layout: RamLayout) -> Iterator[RamSlot]:
    """Parts of the slots, by rising guest-physical address; each block is just that part."""
    for slot in layout.slots:
        for at in range(0, slot.bytes, _PIECE_BYTES):
            size = min(_PIECE_BYTES, slot.bytes - at)
            offset = slot.block_offset + at
            block = replace(
                slot.block,
                host_address=HostVirtualAddress(slot.block.host_address + offset),
                bytes=size, first_index=0, file_offset=slot.block.file_offset + offset,
            )  # fmt: skip
            yield RamSlot(GuestPhysicalAddress(slot.first_gpa + at), size, block, 0)


def _write(file: IO[bytes], vm: LiveVm, piece: RamSlot, read: Array, held: Array) -> None:
    """A range for each run of pages that are held; those not read are holes in it."""
    with GuestContent(vm.process, RamLayout((piece.block,), ())) as content:
        for first, pages in runs_of(np.flatnonzero(held)):
            gpa = GuestPhysicalAddress(piece.first_gpa + first * PAGE_BYTES)
            write_header(file, gpa, pages * PAGE_BYTES)
            at = file.tell()
            rows = np.flatnonzero(read[first : first + pages])
            out = np.empty(rows.size * PAGE_BYTES, np.uint8)
            content.read(rows + first, out)
            start = 0
            for row, count in runs_of(rows):
                file.seek(at + row * PAGE_BYTES)
                file.write(out[start * PAGE_BYTES : (start + count) * PAGE_BYTES].data)
                start += count
            file.seek(at + pages * PAGE_BYTES)
