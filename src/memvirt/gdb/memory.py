# SPDX-License-Identifier: Apache-2.0
"""Guest virtual memory for a debugger: by the guest's current tables, whatever their rights.

No accessed or dirty bit changes and no page is brought back by a read. A write goes to the page as
a device's does: shared pages are unshared, pages kept aside come back, translated code is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator

from memvirt.address import (
    PAGE_BYTES,
    GuestPhysicalAddress,
    GuestVirtualAddress,
    page_offset,
    physical_page_number,
)
from memvirt.machine.memory import MachineMemoryExhausted
from memvirt.observe.address_map import map_address
from memvirt.observe.view import PageUnavailable, VmView, live_view
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmm.reserve import FramesWanted
from memvirt.vmm.stores.backing import BackingStoreError, PageCorrupted


class Unreachable(Exception):
    """Nothing can be read or written at an address; the message says why."""


def _pieces(
    view: VmView, gva: GuestVirtualAddress, count: int
) -> Iterator[tuple[GuestPhysicalAddress, int]]:
    """Guest-physical address and length of each page's part. Raises Unreachable at its turn."""
    while count > 0:
        length = min(count, PAGE_BYTES - (gva & (PAGE_BYTES - 1)))
        try:
            gpa = map_address(view, gva).gpa
        except ValueError as error:
            raise Unreachable(str(error)) from error
        if gpa is None:
            raise Unreachable(f"gVA {gva:#x} is not mapped")
        if physical_page_number(gpa) >= view.pages:
            raise Unreachable(f"gVA {gva:#x} is gPA {gpa:#x}, where no memory is")
        yield gpa, length
        gva, count = GuestVirtualAddress(gva + length), count - length


def read_memory(vm: VirtualMachine, gva: GuestVirtualAddress, count: int) -> bytes:
    """Up to ``count`` bytes from ``gva`` on: as many as can be read.

    Raises Unreachable if not even the first can be.
    """
    view, found = live_view(vm), bytearray()
    try:
        for gpa, length in _pieces(view, gva, count):
            page, offset = view.read_page(physical_page_number(gpa)), page_offset(gpa)
            found += page[offset : offset + length]
    except (Unreachable, PageUnavailable) as error:
        if not found:
            raise Unreachable(str(error)) from error
    return bytes(found)


def write_memory(vm: VirtualMachine, gva: GuestVirtualAddress, content: bytes) -> None:
    """Write ``content`` from ``gva`` on. Raises Unreachable, with nothing written if unmapped."""
    pieces = list(_pieces(live_view(vm), gva, len(content)))
    done = 0
    try:
        for gpa, length in pieces:
            vm.vmm.write_physical(gpa, content[done : done + length])
            done += length
    except (MachineMemoryExhausted, FramesWanted, BackingStoreError, PageCorrupted) as error:
        raise Unreachable(f"gVA {gva + done:#x}: {error}") from error
