# SPDX-License-Identifier: Apache-2.0
"""Taking frames away from guest pages, and where their content goes: whole arrays at once.

A page of zeroes needs no keeping. One that compresses to a half or less stays in memory as
compressed page, if the VM has a place for those; when that is full, the pages kept there longest
move on to the backing store. All others go to the backing store. A page that nobody takes keeps
a frame: content is never lost. Giving up a shared frame may free nothing, so shared pages are
evicted apart, and hold on to their frames until each has found a place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from memvirt.address import PAGE_BYTES
from memvirt.machine.content import Pages
from memvirt.machine.memory import FrameKind, Frames

from .backing import FULL, REFUSED, PageCorrupted, Slots
from .pmap import PageState

if TYPE_CHECKING:
    from .monitor import VirtualMachineMonitor

Ppns = np.ndarray[Any, np.dtype[np.int64]]
_BATCH = 512  # pages copied at a time


@dataclass(frozen=True, slots=True)
class Eviction:
    """Numbers of pages by where their content went. ``spilled`` pages left the compressed ones."""

    discarded: int = 0
    compressed: int = 0
    swapped: int = 0
    refused: int = 0
    spilled: int = 0

    @property
    def unmapped(self) -> int:
        """Pages that have no frame any more."""
        return self.discarded + self.compressed + self.swapped

    def __add__(self, other: Eviction) -> Eviction:
        return Eviction(
            self.discarded + other.discarded,
            self.compressed + other.compressed,
            self.swapped + other.swapped,
            self.refused + other.refused,
            self.spilled + other.spilled,
        )


def evict(vmm: VirtualMachineMonitor, ppns: Ppns) -> Eviction:
    """Unmap resident pages whose translations have been taken back already."""
    total = Eviction()
    shared = vmm.pmap.state[ppns] == PageState.SHARED
    for pages, are_shared in ((ppns[~shared], False), (ppns[shared], True)):
        for start in range(0, pages.size, _BATCH):
            total += _evict_batch(vmm, pages[start : start + _BATCH], are_shared)
    return total


def _evict_batch(vmm: VirtualMachineMonitor, pages: Ppns, shared: bool) -> Eviction:
    pmap, machine, ppns = vmm.pmap, vmm.machine, pages
    mpns = pmap.frame[ppns]
    contents = machine.content.reshape(-1, PAGE_BYTES)[mpns]
    kept = contents.view(np.uint64).any(axis=1)
    if not shared:  # the frames go first: compressed pages find room even on a full machine
        machine.release(mpns)
    pmap.state[ppns] = PageState.UNMAPPED
    pmap.frame[ppns] = 0
    ppns, contents = ppns[kept], contents[kept]
    discarded = int(mpns.size - ppns.size)
    compressed, spilled = _compress(vmm, ppns, contents)
    left = compressed < 0
    swapped = np.full(ppns.size, REFUSED, np.int64)
    if left.any():
        swapped[left] = vmm.backing.put(contents[left])
    _settle(vmm, ppns, swapped, PageState.SWAPPED)
    refused = left & (swapped < 0)
    if shared:
        _leave_shared(vmm, pages, mpns, np.isin(pages, ppns[refused]))
    else:
        _keep(vmm, ppns[refused], contents[refused])
    return Eviction(
        discarded,
        int(np.count_nonzero(compressed >= 0)),
        int(np.count_nonzero(swapped >= 0)),
        int(np.count_nonzero(refused)),
        spilled,
    )


def _settle(vmm: VirtualMachineMonitor, ppns: Ppns, slots: Slots, state: PageState) -> None:
    done = slots >= 0
    vmm.pmap.frame[ppns[done]] = slots[done]
    vmm.pmap.state[ppns[done]] = state


def _compress(vmm: VirtualMachineMonitor, ppns: Ppns, contents: Pages) -> tuple[Slots, int]:
    """Slots of the pages that could be compressed, and how many older ones made room."""
    if vmm.compressed is None or ppns.size == 0:
        return np.full(ppns.size, REFUSED, np.int64), 0
    slots = vmm.compressed.put(ppns, contents)
    _settle(vmm, ppns, slots, PageState.COMPRESSED)
    full = slots == FULL
    spilled = 0
    if full.any():
        # Pages of this very batch may be the oldest that must leave.
        spilled = _spill(vmm, int(np.count_nonzero(full)))
        slots[full] = vmm.compressed.put(ppns[full], contents[full])
        _settle(vmm, ppns[full], slots[full], PageState.COMPRESSED)
    return slots, spilled


def _spill(vmm: VirtualMachineMonitor, count: int) -> int:
    """Move the ``count`` pages compressed longest to the backing store; returns how many went.

    A page that turns out to be damaged stays: that it is lost is the matter of the guest that
    touches it, not of the pages that are on their way out now.
    """
    assert vmm.compressed is not None
    moved = 0
    oldest, packed = [], []
    for ppn, slot in vmm.compressed.oldest(count):
        try:
            packed.append(vmm.compressed.read(slot))
        except PageCorrupted:
            continue
        oldest.append((ppn, slot))
    if not oldest:
        return 0
    contents = np.frombuffer(b"".join(packed), np.uint8).reshape(-1, PAGE_BYTES)
    slots = vmm.backing.put(contents)
    for (ppn, compressed), slot in zip(oldest, slots.tolist(), strict=True):
        if slot >= 0:
            vmm.compressed.discard([compressed])
            vmm.pmap.frame[ppn] = slot
            vmm.pmap.state[ppn] = PageState.SWAPPED
            moved += 1
    vmm.compressed.settle()
    return moved


def _keep(vmm: VirtualMachineMonitor, ppns: Ppns, contents: Pages) -> None:
    """Give refused pages frames again: as many were released a moment ago."""
    if ppns.size == 0:
        return
    mpns = vmm.machine.allocate(ppns.size, kind=FrameKind.GUEST, owner=vmm.vm_id)
    vmm.machine.guest_ppn[mpns] = ppns
    vmm.machine.content.reshape(-1, PAGE_BYTES)[mpns] = contents
    vmm.pmap.frame[ppns] = mpns
    vmm.pmap.state[ppns] = PageState.PRIVATE


def _leave_shared(vmm: VirtualMachineMonitor, ppns: Ppns, mpns: Frames, stay: Any) -> None:
    """Give refused pages (``stay``) their shared frames again, and let go of the others'."""
    vmm.pmap.frame[ppns[stay]] = mpns[stay]
    vmm.pmap.state[ppns[stay]] = PageState.SHARED
    if not stay.all():
        vmm.machine.release(mpns[~stay])
