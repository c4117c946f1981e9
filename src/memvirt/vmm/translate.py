# SPDX-License-Identifier: Apache-2.0
"""The one door through which the processor gets translations, in either paging mode.

``access`` answers one access; ``fill`` also decides what the processor may cache. Two rules keep
its cache of *translated code* right: the processor checks writes for code only through
translations that are executable too, so a page is at any time either one that may be executed,
or one that has fast write translations (see docs/processor.md).
"""

from __future__ import annotations

from typing import Any

from numba import njit

from memvirt.mmu.control import (
    DROP_CODE_AND_RETRY,
    FETCH,
    FLAG_EXECUTED,
    FLAG_WRITE_CACHED,
    FLUSH_AND_RETRY,
    NOT_CANONICAL,
    OK,
    PAGING_NESTED,
    PAGING_SHADOW,
    READ,
    TRUE_FAULT,
    WRITE,
)
from memvirt.mmu.entry import CR4_LA57, EFER_LMA, NO_EXECUTE, USER, WRITABLE
from memvirt.mmu.guest_walk import guest_walk, permission_error
from memvirt.mmu.native import load8, load64, store8
from memvirt.mmu.second_level import MISS, pmap_walk

from .paging.nested import nested_access
from .paging.shadow import shadow_access

PERMIT_READ, PERMIT_WRITE, PERMIT_EXECUTE = 1, 2, 4
_BLOCKS_TO_FLUSH = 2
_JUST_NOW = 4096  # bytes of code begun: more than the block that retries


@njit(nogil=True, cache=True)
def _flat_access(vm: Any, gva: int, access: int) -> int:
    """For the engine's own MMU (differential runs): guest tables, then the identity."""
    status = guest_walk(vm, gva, access)
    if status != OK:
        return int(status)
    vm.out_machine_address = pmap_walk(vm, vm.walk_gpa, READ)
    if vm.out_machine_address == MISS:
        vm.out_machine_address = -1
    vm.out_permissions = WRITABLE | USER
    return OK


@njit(nogil=True, cache=True)
def access(vm: Any, gva: int, kind: int) -> int:
    """Translate one access (READ, WRITE, FETCH) in the VM's paging mode; OK or a status."""
    if vm.efer & EFER_LMA != 0:
        sign = gva >> (56 if vm.cr4 & CR4_LA57 else 47)
        if sign != 0 and sign != -1:
            return NOT_CANONICAL
    if vm.paging == PAGING_SHADOW:
        status = shadow_access(vm, gva, kind)
    elif vm.paging == PAGING_NESTED:
        status = nested_access(vm, gva, kind)
    else:
        status = _flat_access(vm, gva, kind)
    if status == TRUE_FAULT:
        vm.true_faults += 1
    return int(status)


@njit(nogil=True, cache=True)
def _allowed(vm: Any, rights: int, kind: int) -> bool:
    user, no_execute = rights & USER != 0, rights & NO_EXECUTE != 0
    if kind == WRITE and rights & WRITABLE == 0:
        return False
    return bool(permission_error(vm, user, True, no_execute, kind, True) == 0)


@njit(nogil=True, cache=True)
def _window(vm: Any) -> int:
    """Grant an access that reaches no memory: the local APIC, or the open bus."""
    vm.mmio_fills += 1
    vm.out_large_page = 0
    local_apic = vm.walk_gpa >> 12 == vm.lapic_gpa >> 12
    vm.out_machine_address = vm.lapic_window if local_apic else vm.hole_window
    vm.out_permissions = PERMIT_READ | PERMIT_WRITE | (0 if local_apic else PERMIT_EXECUTE)
    return OK


@njit(nogil=True, cache=True)
def _owe_flush(vm: Any, page: int) -> bool:
    """Note that a translation of ``page`` grants more than it should, until the flush to come.

    A store that changes the block it is in ends it, and is done again in a block of its own: that
    one may still begin. False if the pages owed would no longer be neighbours: flush first.
    """
    if vm.flush_owed == 0:
        vm.owed_first = vm.owed_last = page
    elif page == vm.owed_last + 0x1000:
        vm.owed_last = page
    elif page == vm.owed_first - 0x1000:
        vm.owed_first = page
    elif not vm.owed_first <= page <= vm.owed_last:
        return False
    vm.flush_owed = _BLOCKS_TO_FLUSH
    vm.deadline_code_bytes = 0
    return True


@njit(nogil=True, cache=True)
def fill(vm: Any, gva: int, kind: int) -> int:
    """One TLB fill: OK with ``out_machine_address`` and PERMIT_* bits in ``out_permissions``.

    On another status nothing may be cached, and the run loop acts on it.
    """
    vm.tlb_fills += 1
    status = access(vm, gva, kind)
    if status != OK:
        return int(status)
    if vm.out_machine_address < 0:
        return int(_window(vm))
    if vm.out_large_page:
        vm.large_fills += 1
    rights = vm.out_permissions
    mpn = vm.out_machine_address >> 12
    ppn = load64(vm.frame_tag_at + mpn * 8)
    if ppn < 0:  # shared: never written in place, and its code is dropped whenever it is left
        vm.out_permissions = PERMIT_READ | (PERMIT_EXECUTE if kind == FETCH else 0)
        return OK
    flags_at = vm.pmap_flags_at + ppn
    flags = load8(flags_at)
    executable = _allowed(vm, rights, FETCH)
    writable = kind == WRITE or _allowed(vm, rights, WRITE)
    permissions = PERMIT_READ if kind == READ or _allowed(vm, rights, READ) else 0
    if kind == FETCH:
        if flags & FLAG_EXECUTED == 0:
            store8(flags_at, (flags | FLAG_EXECUTED) & ~FLAG_WRITE_CACHED)
            if flags & FLAG_WRITE_CACHED:
                return FLUSH_AND_RETRY
            flags |= FLAG_EXECUTED
        permissions |= PERMIT_EXECUTE
    if flags & FLAG_EXECUTED:
        if executable:
            permissions |= PERMIT_EXECUTE
        elif kind == WRITE:
            if mpn != vm.dropped_frame or vm.code_bytes - vm.dropped_code_bytes > _JUST_NOW:
                store8(flags_at, flags & ~FLAG_EXECUTED)
                vm.exit_frame = mpn
                return DROP_CODE_AND_RETRY
            # The code that writes lies in this very frame, so dropping it helps only until it is
            # fetched again. Written as if executable, it is checked store by store; the
            # translation is gone before a block could begin that is fetched through it.
            if not _owe_flush(vm, gva & ~0xFFF):
                return FLUSH_AND_RETRY
            vm.precise_writes += 1
            permissions |= PERMIT_EXECUTE
        else:
            writable = False
    if writable:
        permissions |= PERMIT_WRITE
        if flags & FLAG_WRITE_CACHED == 0:
            store8(flags_at, flags | FLAG_WRITE_CACHED)
    vm.out_permissions = permissions
    return OK
