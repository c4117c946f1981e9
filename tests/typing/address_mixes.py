# SPDX-License-Identifier: Apache-2.0
"""Deliberate mixes of address spaces. Never run: mypy must reject each marked line, and no other.

A line ends in ``# mix`` or, if one kind of error alone will do, in ``# mix: code``, where code is
mypy's, without brackets. Extend it with every surface that takes or gives an address: one line that
is right and one for each wrong space.
"""

from __future__ import annotations

from memvirt.address import (
    GuestPhysicalAddress,
    GuestVirtualAddress,
    MachineAddress,
    MachinePageNumber,
    PhysicalPageNumber,
    guest_physical_address,
    is_canonical,
    machine_address,
    machine_page_number,
    physical_page_number,
)
from memvirt.machine.memory import FrameKind, MachineMemory

gva = GuestVirtualAddress(0x7F00_1000)
gpa = GuestPhysicalAddress(0x5678)
ppn = PhysicalPageNumber(5)
mpn = MachinePageNumber(77)
address = MachineAddress(0x4D_0678)


def arithmetic() -> None:
    """``memvirt.address``: between an address and its page, inside one space only."""
    physical_page_number(gpa)
    physical_page_number(gva)  # mix: arg-type
    physical_page_number(address)  # mix: arg-type
    physical_page_number(ppn)  # mix: arg-type
    physical_page_number(0x5678)  # mix: arg-type
    machine_page_number(address)
    machine_page_number(gpa)  # mix: arg-type
    machine_page_number(gva)  # mix: arg-type
    machine_page_number(mpn)  # mix: arg-type
    guest_physical_address(ppn, 0x678)
    guest_physical_address(mpn, 0x678)  # mix: arg-type
    guest_physical_address(gpa)  # mix: arg-type
    machine_address(mpn, 0x678)
    machine_address(ppn, 0x678)  # mix: arg-type
    machine_address(address)  # mix: arg-type
    is_canonical(gva)
    is_canonical(gpa)  # mix: arg-type
    is_canonical(address)  # mix: arg-type


def results() -> None:
    """What comes out has its space too."""
    a: PhysicalPageNumber = physical_page_number(gpa)
    b: MachinePageNumber = physical_page_number(gpa)  # mix: assignment
    c: MachinePageNumber = machine_page_number(address)
    d: PhysicalPageNumber = machine_page_number(address)  # mix: assignment
    e: GuestPhysicalAddress = guest_physical_address(a)
    f: MachineAddress = guest_physical_address(a)  # mix: assignment
    g: MachineAddress = machine_address(c)
    h: GuestPhysicalAddress = machine_address(c)  # mix: assignment
    print(a, b, c, d, e, f, g, h)


def bare_numbers() -> None:
    """Plain arithmetic leaves the space: what comes of it is a number like any other."""
    following: PhysicalPageNumber = ppn + 1  # mix: assignment
    shifted: MachinePageNumber = address >> 12  # mix: assignment
    number: int = ppn + 1
    print(following, shifted, number)


def frames(machine: MachineMemory) -> None:
    """``machine.memory``: runs of frames."""
    first = machine.allocate_run(9, kind=FrameKind.GUEST)
    machine_address(first)
    guest_physical_address(first)  # mix: arg-type
    contiguous: PhysicalPageNumber = machine.allocate_contiguous(4, kind=FrameKind.GUEST)  # mix
    print(contiguous)
