# SPDX-License-Identifier: Apache-2.0
"""Guest virtual memory as the processor itself uses it: descriptor tables and stacks.

Everything goes through the same door as the guest's instructions (``vmm.translate.access``), so
that demand allocation, traces, copy-on-write and faults work alike.
"""

from __future__ import annotations

from numba import types

from memvirt.address import GuestVirtualAddress, machine_page_number
from memvirt.compiled import callback, compiled
from memvirt.mmu.access import FETCH, OK, READ, TRUE_FAULT, WRITE
from memvirt.mmu.native import call_c3, copy_bytes, load8, store8
from memvirt.vmm.frames import frame_ppn
from memvirt.vmm.translate import access
from memvirt.vmm.vmm_state import vmm_state_at

from .engine_state import DROP_CODE_AND_RETRY, EXECUTED, EngineState, vmm_of


@callback("int32(int64, int64, int64)")
def access_entry(vmm: int, gva: GuestVirtualAddress, kind: int) -> int:
    """``vmm.translate.access`` behind a C function pointer (``EngineState.access_at``).

    Called so by everything but the TLB fill itself, or each compiled caller would contain the
    whole MMU once more and take as long to compile.
    """
    return types.int32(access(vmm_state_at(vmm), gva, kind))


@compiled
def _host_address(engine: EngineState, gva: GuestVirtualAddress, kind: int) -> int:
    """Host address of one byte, after a translation; 0 with ``translation_status`` set."""
    vmm = vmm_of(engine)
    mmu = vmm.mmu
    status = call_c3(engine.access_at, (engine.vmm_at, gva, kind))
    if status == OK and mmu.out_machine_address < 0:
        status, mmu.fault_error = TRUE_FAULT, 0
    if status == OK and kind == WRITE:
        mpn = machine_page_number(mmu.out_machine_address)
        executed_at = engine.page_flags_at + frame_ppn(vmm, mpn)
        if load8(executed_at) & EXECUTED:
            store8(executed_at, 0)
            engine.code_frame = mpn
            status = DROP_CODE_AND_RETRY
    engine.translation_status = status
    if status != OK:
        engine.fault_gva, engine.fault_access = gva, kind
        return 0
    return mmu.memory_at + mmu.out_machine_address


@compiled
def read_guest(engine: EngineState, gva: GuestVirtualAddress, destination: int, count: int) -> int:
    """Copy ``count`` bytes at ``gva`` to a host address as the supervisor; OK or a status."""
    return int(_copy_in(engine, gva, destination, count, READ))


@compiled
def fetch_guest(engine: EngineState, gva: GuestVirtualAddress, destination: int, count: int) -> int:
    """As ``read_guest``, of instructions, with the rights of the privilege level they run at."""
    return int(_copy_in(engine, gva, destination, count, FETCH))


@compiled
def _copy_in(
    engine: EngineState, gva: GuestVirtualAddress, destination: int, count: int, kind: int
) -> int:
    done = 0
    while done < count:
        piece = min(count - done, 0x1000 - ((gva + done) & 0xFFF))
        host = _host_address(engine, GuestVirtualAddress(gva + done), kind)
        if host == 0:
            return engine.translation_status
        copy_bytes(destination + done, host, piece)
        done += piece
    return OK


@compiled
def write_guest(engine: EngineState, gva: GuestVirtualAddress, source: int, count: int) -> int:
    """Copy ``count`` bytes from a host address to ``gva``, all or nothing; OK or a status."""
    last_page = GuestVirtualAddress((gva + count - 1) & ~0xFFF)
    if last_page != gva & ~0xFFF and _host_address(engine, last_page, WRITE) == 0:
        return engine.translation_status
    done = 0
    while done < count:
        piece = min(count - done, 0x1000 - ((gva + done) & 0xFFF))
        host = _host_address(engine, GuestVirtualAddress(gva + done), WRITE)
        if host == 0:
            return engine.translation_status
        copy_bytes(host, source + done, piece)
        done += piece
    return OK
