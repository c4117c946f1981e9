# SPDX-License-Identifier: Apache-2.0
"""What the engine may cache of a translation.

Two rules keep the engine's cache of *translated code* right. It checks writes for code only through
translations that are executable too, so a page is at any time either one that may be executed, or
one that has fast write translations. Passing from one state to the other flushes, or drops the
page's code (see docs/processor.md).
"""

from __future__ import annotations

from memvirt.address import (
    GuestPhysicalAddress,
    GuestVirtualAddress,
    MachineAddress,
    machine_page_number,
)
from memvirt.compiled import compiled
from memvirt.mmu.access import FETCH, FLUSH_AND_RETRY, OK, READ, WRITE
from memvirt.mmu.entry import NO_EXECUTE, USER, WRITABLE
from memvirt.mmu.guest_walk import permission_error
from memvirt.mmu.mmu_state import MmuState
from memvirt.mmu.native import load8, store8
from memvirt.mmu.page_state import FLAG_WRITE_CACHED
from memvirt.platform.ioapic import IO_APIC_BASE
from memvirt.platform.lapic import BASE_ENABLE
from memvirt.vmm.frames import frame_ppn
from memvirt.vmm.translate import access

from .engine_state import DROP_CODE_AND_RETRY, EXECUTED, NO_INSTRUCTION, EngineState, pc_at, vmm_of

LAPIC_GPA = GuestPhysicalAddress(0xFEE0_0000)
PERMIT_READ, PERMIT_WRITE, PERMIT_EXECUTE = 1, 2, 4
_BLOCKS_TO_FLUSH = 2
_JUST_NOW = 4096  # bytes of code begun: more than the block that retries


@compiled
def _allowed(mmu: MmuState, rights: int, kind: int) -> bool:
    user, no_execute = rights & USER != 0, rights & NO_EXECUTE != 0
    if kind == WRITE and rights & WRITABLE == 0:
        return False
    return bool(permission_error(mmu, user, True, no_execute, kind, True) == 0)


@compiled
def _window(engine: EngineState, mmu: MmuState, kind: int) -> int:
    """Grant an access that reaches no memory: an APIC's page, or the open bus.

    Nothing is fetched from either: the open bus reads as ones, FF FF, which is no instruction.
    """
    if kind == FETCH:
        return NO_INSTRUCTION
    engine.mmio_fills += 1
    mmu.out_large_page = 0
    base = pc_at(engine.pc_at).lapic.base_msr
    local_apic = base & BASE_ENABLE != 0 and mmu.walk_gpa >> 12 == base >> 12
    io_apic = not local_apic and mmu.walk_gpa >> 12 == IO_APIC_BASE >> 12
    window = engine.lapic_window if local_apic else engine.hole_window
    mmu.out_machine_address = MachineAddress(engine.io_apic_window if io_apic else window)
    mmu.out_permissions = PERMIT_READ | PERMIT_WRITE
    return OK


@compiled
def _owe_flush(engine: EngineState, page: GuestVirtualAddress) -> bool:
    """Note that a translation of ``page`` grants more than it should, until the flush to come.

    A store that changes the block it is in ends it, and is done again in a block of its own: that
    one may still begin. False if the pages owed would no longer be neighbours: flush first.
    """
    if engine.flush_owed == 0:
        engine.owed_first = engine.owed_last = page
    elif page == engine.owed_last + 0x1000:
        engine.owed_last = page
    elif page == engine.owed_first - 0x1000:
        engine.owed_first = page
    elif not engine.owed_first <= page <= engine.owed_last:
        return False
    engine.flush_owed = _BLOCKS_TO_FLUSH
    engine.deadline_code_bytes = 0
    return True


@compiled
def fill(engine: EngineState, gva: GuestVirtualAddress, kind: int) -> int:
    """One TLB fill: OK with ``out_machine_address`` and PERMIT_* bits in ``out_permissions``.

    On another status nothing may be cached, and the run loop acts on it.
    """
    vmm = vmm_of(engine)
    mmu = vmm.mmu
    engine.tlb_fills += 1
    status = access(vmm, gva, kind)
    if status != OK:
        return int(status)
    if mmu.out_machine_address < 0:
        return int(_window(engine, mmu, kind))
    if mmu.out_large_page:
        engine.large_fills += 1
    rights = mmu.out_permissions
    mpn = machine_page_number(mmu.out_machine_address)
    ppn = frame_ppn(vmm, mpn)
    if ppn < 0:  # shared: never written in place, and its code is dropped whenever it is left
        mmu.out_permissions = PERMIT_READ | (PERMIT_EXECUTE if kind == FETCH else 0)
        return OK
    executed_at = engine.page_flags_at + ppn
    executed = load8(executed_at) & EXECUTED
    flags_at = mmu.pmap_flags_at + ppn
    # Who may read or write may read; a fetch is judged by other bits (SMEP, SMAP, NX).
    readable = kind != FETCH or _allowed(mmu, rights, READ)
    writable = kind == WRITE or (readable and rights & WRITABLE != 0)
    permissions = PERMIT_READ if readable else 0
    if kind == FETCH:
        if executed == 0:
            executed = EXECUTED
            store8(executed_at, EXECUTED)
            flags = load8(flags_at)
            if flags & FLAG_WRITE_CACHED:
                store8(flags_at, flags & ~FLAG_WRITE_CACHED)
                return FLUSH_AND_RETRY
        permissions |= PERMIT_EXECUTE
    if executed:
        if kind == FETCH or _allowed(mmu, rights, FETCH):
            permissions |= PERMIT_EXECUTE
        elif kind == WRITE:
            if mpn != engine.dropped_frame or (
                engine.code_bytes - engine.dropped_code_bytes > _JUST_NOW
            ):
                store8(executed_at, 0)
                engine.code_frame = mpn
                return DROP_CODE_AND_RETRY
            # The code that writes lies in this very frame, so dropping it helps only until it is
            # fetched again. Written as if executable, it is checked store by store; the
            # translation is gone before a block could begin that is fetched through it.
            if not _owe_flush(engine, GuestVirtualAddress(gva & ~0xFFF)):
                return FLUSH_AND_RETRY
            engine.precise_writes += 1
            permissions |= PERMIT_EXECUTE
        else:
            writable = False
    if writable:
        permissions |= PERMIT_WRITE
        flags = load8(flags_at)
        if flags & FLAG_WRITE_CACHED == 0:
            store8(flags_at, flags | FLAG_WRITE_CACHED)
    mmu.out_permissions = permissions
    return OK
