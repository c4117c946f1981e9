# SPDX-License-Identifier: Apache-2.0
"""What the VMM and machine memory keep for each guest page, from the arrays there really are."""

from __future__ import annotations

import ctypes
import gc
import mmap
from typing import Any

import numpy as np

from memvirt.machine.memory import MachineMemory
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.paging.shadow_paging import ShadowPaging

PAGES = 1 << 18  # a VM of 1 GiB
_FIXED = 1 << 18  # bytes: records, the reserve, the nested cache


def array_bytes(owner: object) -> int:
    """Bytes of all NumPy arrays that can be reached from ``owner``, each once.

    But for page content: that is memory, not metadata.
    """
    seen: set[int] = set()
    arrays: dict[int, int] = {}
    waiting: list[Any] = [owner]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, np.ndarray):
            while isinstance(found.base, np.ndarray):
                found = found.base
            if found.base is None:
                arrays[id(found)] = found.nbytes
        elif type(found).__module__.startswith("memvirt") or isinstance(found, (dict, list, tuple)):
            waiting += gc.get_referents(found)
    return sum(arrays.values())


def resident_bytes(array: Any) -> int:
    """Bytes of an array that the operating system has given memory for."""
    first = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    size = array.ctypes.data + array.nbytes - first
    flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(first), ctypes.c_size_t(size), flags) == 0
    return mmap.PAGESIZE * sum(flag & 1 for flag in flags)


def test_a_frame_takes_nine_bytes() -> None:
    machine = MachineMemory(PAGES, metadata_only=True)
    assert array_bytes(machine) == 9 * PAGES


def test_what_is_counted_is_all_of_it() -> None:
    """Every array over the frames and over the pages is among those that are counted."""
    machine = MachineMemory(1 << 12)
    vmm = VirtualMachineMonitor(machine, 1 << 11, PagingMode.NESTED)
    before = array_bytes(vmm)
    vmm.pmap.extra = np.zeros(1 << 11, np.uint8)  # type: ignore[attr-defined]
    assert array_bytes(vmm) == before + (1 << 11)


def test_metadata_of_a_guest_page_in_nested_mode() -> None:
    """A frame each and the pmap; page tables themselves are frames."""
    machine = MachineMemory(PAGES, metadata_only=True)
    found = array_bytes(VirtualMachineMonitor(machine, PAGES, PagingMode.NESTED))
    assert 15 * PAGES < found <= 16 * PAGES + _FIXED


def test_metadata_of_a_guest_page_in_shadow_mode() -> None:
    """With what is kept for the shadow pages that map all of the VM's memory once.

    Memory for as many as there may be is reserved, and used only for those there are.
    """
    machine = MachineMemory(PAGES, metadata_only=True)
    vmm = VirtualMachineMonitor(machine, PAGES, PagingMode.SHADOW)
    tables = vmm.page_tables
    assert isinstance(tables, ShadowPaging)
    used = PAGES // 512 + PAGES // 512**2 + 2  # page tables, directories and above
    unused = tables.pages.size - used
    rest = array_bytes(vmm) - unused * tables.bytes_per_shadow_page
    assert rest <= 48 * PAGES + _FIXED
    by_entry = (tables._copy, tables.rmap_next, tables.rmap_previous)
    assert tables.bytes_per_shadow_page == sum(each.nbytes for each in by_entry) // (
        tables.pages.size
    )
    assert resident_bytes(tables._copy) < tables._copy.nbytes // 8
