# SPDX-License-Identifier: Apache-2.0
"""Guest virtual memory as the processor itself uses it: descriptor tables and stacks.

Everything goes through the same door as the guest's instructions (``vmm.translate.access``), so
that demand allocation, traces, copy-on-write and faults work alike.
"""

from __future__ import annotations

from typing import Any

from numba import cfunc, njit, types

from memvirt.mmu.control import (
    CONTROL_RECORD,
    DROP_CODE_AND_RETRY,
    FETCH,
    FLAG_EXECUTED,
    OK,
    READ,
    TRUE_FAULT,
    WRITE,
)
from memvirt.mmu.native import call_c3, copy_bytes, load8, load64, record_reference, store8
from memvirt.vmm.translate import access

control_at = record_reference(CONTROL_RECORD)


@cfunc("int32(int64, int64, int64)", cache=True)
def access_entry(control: int, gva: int, kind: int) -> int:
    """``vmm.translate.access`` behind a C function pointer (``access_at`` of the control block).

    Called so by everything but the TLB fill itself, or each compiled caller would contain the
    whole MMU once more and take as long to compile.
    """
    return types.int32(access(control_at(control), gva, kind))


@njit(nogil=True, cache=True)
def _host_address(vm: Any, gva: int, kind: int) -> int:
    """Host address of one byte, after a translation; 0 with ``translation_status`` set."""
    status = call_c3(vm.access_at, (vm.control_at, gva, kind))
    if status == OK and vm.out_machine_address < 0:
        status, vm.fault_error = TRUE_FAULT, 0
    if status == OK and kind == WRITE:
        mpn = vm.out_machine_address >> 12
        ppn = load64(vm.frame_tag_at + mpn * 8)
        flags = load8(vm.pmap_flags_at + ppn)
        if flags & FLAG_EXECUTED:
            store8(vm.pmap_flags_at + ppn, flags & ~FLAG_EXECUTED)
            vm.exit_frame = mpn
            status = DROP_CODE_AND_RETRY
    vm.translation_status = status
    if status != OK:
        vm.fault_gva, vm.fault_access = gva, kind
        return 0
    return vm.memory_at + vm.out_machine_address


@njit(nogil=True, cache=True)
def read_guest(vm: Any, gva: int, destination: int, count: int) -> int:
    """Copy ``count`` bytes at ``gva`` to a host address as the supervisor; OK or a status."""
    return int(_copy_in(vm, gva, destination, count, READ))


@njit(nogil=True, cache=True)
def fetch_guest(vm: Any, gva: int, destination: int, count: int) -> int:
    """As ``read_guest``, of instructions, with the rights of the privilege level they run at."""
    return int(_copy_in(vm, gva, destination, count, FETCH))


@njit(nogil=True, cache=True)
def _copy_in(vm: Any, gva: int, destination: int, count: int, kind: int) -> int:
    done = 0
    while done < count:
        piece = min(count - done, 0x1000 - ((gva + done) & 0xFFF))
        host = _host_address(vm, gva + done, kind)
        if host == 0:
            return vm.translation_status
        copy_bytes(destination + done, host, piece)
        done += piece
    return OK


@njit(nogil=True, cache=True)
def write_guest(vm: Any, gva: int, source: int, count: int) -> int:
    """Copy ``count`` bytes from a host address to ``gva``, all or nothing; OK or a status."""
    last_page = (gva + count - 1) & ~0xFFF
    if last_page != gva & ~0xFFF and _host_address(vm, last_page, WRITE) == 0:
        return vm.translation_status
    done = 0
    while done < count:
        piece = min(count - done, 0x1000 - ((gva + done) & 0xFFF))
        host = _host_address(vm, gva + done, WRITE)
        if host == 0:
            return vm.translation_status
        copy_bytes(host, source + done, piece)
        done += piece
    return OK
