# SPDX-License-Identifier: Apache-2.0
"""Taking back the translations of pages whose frames are about to change. Whole arrays at once."""

from __future__ import annotations

from typing import Any

from numba import njit

from memvirt.mmu.control import (
    FLAG_EXECUTED,
    FLAG_WRITE_CACHED,
    PAGING_NESTED,
    PAGING_SHADOW,
    STATE_SHARED,
)
from memvirt.mmu.native import load8, store8

from .paging.nested import drop_nested_entry
from .paging.shadow_table import drop_mappings


@njit(nogil=True, cache=True)
def invalidate_pages(vm: Any, ppns: Any, executed: Any) -> int:
    """Drop every shadow or nested entry of ``ppns`` (int64 array); returns how many.

    ``executed[i]`` (uint8, out) says whether the processor may hold code of page i. Obligation:
    before guest code runs again the caller flushes the processor's translations, and drops the
    code of executed pages.
    """
    dropped = 0
    for i in range(ppns.size):
        ppn = ppns[i]
        if vm.paging == PAGING_SHADOW:
            dropped += drop_mappings(vm, ppn)
        elif vm.paging == PAGING_NESTED:
            dropped += drop_nested_entry(vm, ppn)
        flags = load8(vm.pmap_flags_at + ppn)
        shared = load8(vm.pmap_state_at + ppn) == STATE_SHARED
        executed[i] = 1 if flags & FLAG_EXECUTED or shared else 0
        store8(vm.pmap_flags_at + ppn, flags & ~(FLAG_EXECUTED | FLAG_WRITE_CACHED))
    return dropped
