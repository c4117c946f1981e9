# SPDX-License-Identifier: Apache-2.0
"""Frames for compiled code: taken from the VM's reserve, never from the host's free list.

The reserve is a small stack of zeroed frames the VM already owns, refilled by Python while the
processor is stopped. So a page fault costs no lock, and VMs on other threads never contend.
"""

from __future__ import annotations

from memvirt.address import MachinePageNumber, PhysicalPageNumber
from memvirt.compiled import compiled
from memvirt.machine.memory import FrameKind
from memvirt.mmu.access import NEED_FRAMES, NEED_PAGE, OK
from memvirt.mmu.native import load8, load32, load64, load_signed32, store8, store32, store64
from memvirt.mmu.page_state import (
    FLAG_BALLOONED,
    FLAGS_UNTIL_TOUCHED,
    STATE_PRIVATE,
    STATE_SHARED,
    STATE_UNMAPPED,
)

from .vmm_state import VmmState

KIND_GUEST = int(FrameKind.GUEST)
KIND_SHADOW = int(FrameKind.SHADOW)
KIND_NESTED = int(FrameKind.NESTED)

# No single fault takes more frames: five levels of tables twice, and the page itself.
FRAMES_PER_FAULT = 12


@compiled
def take_frame(vmm: VmmState, kind: int, detail: int) -> MachinePageNumber:
    """An MPN from the reserve, for ``kind`` with its ``detail`` (``machine.memory``); -1 if the
    reserve is empty."""
    if vmm.reserve_count == 0:
        return MachinePageNumber(-1)
    vmm.reserve_count -= 1
    mpn = MachinePageNumber(load32(vmm.reserve_at + vmm.reserve_count * 4))
    store8(vmm.frame_kind_at + mpn, kind)
    store32(vmm.frame_detail_at + mpn * 4, detail)
    return mpn


@compiled
def frame_ppn(vmm: VmmState, mpn: MachinePageNumber) -> PhysicalPageNumber:
    """The PPN behind a frame that is mapped to the guest, negative if pages share it."""
    return PhysicalPageNumber(load_signed32(vmm.frame_detail_at + mpn * 4))


@compiled
def _count(vmm: VmmState, state: int, more: int) -> None:
    at = vmm.pmap_counts_at + state * 8
    store64(at, load64(at) + more)


@compiled
def resolve_page(vmm: VmmState, ppn: PhysicalPageNumber, write: bool) -> int:
    """Make ``ppn`` readable (or writable) by the pmap: OK, NEED_FRAMES or NEED_PAGE.

    A page never touched gets a zeroed frame here; all else is the VMM's business in Python. Every
    first access after the host has taken a page's translations back comes here: a sampled page is
    known to be touched.
    """
    mmu = vmm.mmu
    flags_at = mmu.pmap_flags_at + ppn
    flags = load8(flags_at)
    if flags & FLAGS_UNTIL_TOUCHED:
        store8(flags_at, flags & ~FLAGS_UNTIL_TOUCHED)
        vmm.sampled_touches += 1
    state = load8(mmu.pmap_state_at + ppn)
    if state == STATE_PRIVATE or (state == STATE_SHARED and not write):
        return OK
    if state == STATE_UNMAPPED:
        mpn = take_frame(vmm, KIND_GUEST, ppn)
        if mpn < 0:
            return NEED_FRAMES
        store32(mmu.pmap_frame_at + ppn * 4, mpn)
        store8(mmu.pmap_state_at + ppn, STATE_PRIVATE)
        _count(vmm, STATE_UNMAPPED, -1)
        _count(vmm, STATE_PRIVATE, 1)
        flags = load8(mmu.pmap_flags_at + ppn)
        if flags & FLAG_BALLOONED:
            store8(mmu.pmap_flags_at + ppn, flags & ~FLAG_BALLOONED)
            vmm.ballooned_pages -= 1
            vmm.balloon_touched += 1
        vmm.frames_demand_allocated += 1
        return OK
    vmm.exit_ppn = ppn
    vmm.exit_write = write
    return NEED_PAGE
