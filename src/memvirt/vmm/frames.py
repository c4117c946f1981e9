# SPDX-License-Identifier: Apache-2.0
"""Frames for compiled code: taken from the VM's reserve, never from the host's free list.

The reserve is a small stack of zeroed frames the VM already owns, refilled by Python while the
processor is stopped. So a page fault costs no lock, and VMs on other threads never contend.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from memvirt.machine.memory import FrameKind
from memvirt.mmu.control import (
    FLAG_BALLOONED,
    FLAGS_UNTIL_TOUCHED,
    NEED_FRAMES,
    NEED_PAGE,
    OK,
    STATE_PRIVATE,
    STATE_SHARED,
    STATE_UNMAPPED,
)
from memvirt.mmu.native import load8, load32, store8, store32, store64

KIND_GUEST = int(FrameKind.GUEST)
KIND_SHADOW = int(FrameKind.SHADOW)
KIND_NESTED = int(FrameKind.NESTED)

# No single fault takes more frames: five levels of tables twice, and the page itself.
FRAMES_PER_FAULT = 12


@njit(nogil=True, cache=True)
def take_frame(vm: Any, kind: int, tag: int) -> int:
    """An MPN from the reserve, for ``kind``, or -1 if the reserve is empty."""
    if vm.reserve_count == 0:
        return -1
    vm.reserve_count -= 1
    mpn = load32(vm.reserve_at + vm.reserve_count * 4)
    store8(vm.frame_kind_at + mpn, kind)
    store64(vm.frame_tag_at + mpn * 8, tag)
    return mpn


@njit(nogil=True, cache=True)
def resolve_page(vm: Any, ppn: int, write: bool) -> int:
    """Make ``ppn`` readable (or writable) by the pmap: OK, NEED_FRAMES or NEED_PAGE.

    A page never touched gets a zeroed frame here; all else is the VMM's business in Python. Every
    first access after the host has taken a page's translations back comes here: a sampled page is
    known to be touched.
    """
    flags_at = vm.pmap_flags_at + ppn
    flags = load8(flags_at)
    if flags & FLAGS_UNTIL_TOUCHED:
        store8(flags_at, flags & ~FLAGS_UNTIL_TOUCHED)
        vm.sampled_touches += 1
    state = load8(vm.pmap_state_at + ppn)
    if state == STATE_PRIVATE or (state == STATE_SHARED and not write):
        return OK
    if state == STATE_UNMAPPED:
        mpn = take_frame(vm, KIND_GUEST, ppn)
        if mpn < 0:
            return NEED_FRAMES
        store32(vm.pmap_frame_at + ppn * 4, mpn)
        store8(vm.pmap_state_at + ppn, STATE_PRIVATE)
        flags = load8(vm.pmap_flags_at + ppn)
        if flags & FLAG_BALLOONED:
            store8(vm.pmap_flags_at + ppn, flags & ~FLAG_BALLOONED)
            vm.ballooned_pages -= 1
            vm.balloon_touched += 1
        vm.frames_demand_allocated += 1
        return OK
    vm.exit_ppn = ppn
    vm.exit_write = write
    return NEED_PAGE
