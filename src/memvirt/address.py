# SPDX-License-Identifier: Apache-2.0
"""The address spaces, their types, and the arithmetic between them.

======================  ==========================  =====================================
space                   address type                page-number type
======================  ==========================  =====================================
guest virtual           ``GuestVirtualAddress``     (none: the guest's own business)
guest physical          ``GuestPhysicalAddress``    ``PhysicalPageNumber`` (PPN)
machine                 ``MachineAddress``          ``MachinePageNumber`` (MPN, a frame)
host virtual            ``HostVirtualAddress``      (none: only QEMU's memory has it)
======================  ==========================  =====================================

The types are distinct to the type checker, so a PPN cannot be passed where an MPN is meant.
They cost nothing at run time. Compiled kernels work on bare 64-bit integers and say in the
name of each variable which space it belongs to.
"""

from __future__ import annotations

from typing import NewType

GuestVirtualAddress = NewType("GuestVirtualAddress", int)
GuestPhysicalAddress = NewType("GuestPhysicalAddress", int)
MachineAddress = NewType("MachineAddress", int)
HostVirtualAddress = NewType("HostVirtualAddress", int)
PhysicalPageNumber = NewType("PhysicalPageNumber", int)
MachinePageNumber = NewType("MachinePageNumber", int)

PAGE_SHIFT = 12
PAGE_BYTES = 1 << PAGE_SHIFT
PAGE_OFFSET_MASK = PAGE_BYTES - 1
ADDRESS_BITS_MASK = (1 << 64) - 1


def physical_page_number(gpa: GuestPhysicalAddress) -> PhysicalPageNumber:
    """The PPN that holds the guest-physical address ``gpa``."""
    return PhysicalPageNumber(gpa >> PAGE_SHIFT)


def machine_page_number(machine_address: MachineAddress) -> MachinePageNumber:
    """The MPN that holds ``machine_address``."""
    return MachinePageNumber(machine_address >> PAGE_SHIFT)


def guest_physical_address(ppn: PhysicalPageNumber, offset: int = 0) -> GuestPhysicalAddress:
    """The guest-physical address of byte ``offset`` of page ``ppn``."""
    return GuestPhysicalAddress((ppn << PAGE_SHIFT) + offset)


def machine_address(mpn: MachinePageNumber, offset: int = 0) -> MachineAddress:
    """The machine address of byte ``offset`` of frame ``mpn``."""
    return MachineAddress((mpn << PAGE_SHIFT) + offset)


def page_offset(address: int) -> int:
    """The offset of an address, of any space, inside its 4 KiB page."""
    return address & PAGE_OFFSET_MASK


def unsigned64(word: int) -> int:
    """A kernel's signed 64-bit word as the unsigned number users read."""
    return int(word) & ADDRESS_BITS_MASK


def signed64(word: int) -> int:
    """An unsigned 64-bit number as the signed word the compiled kernels take."""
    word &= ADDRESS_BITS_MASK
    return word - (1 << 64) if word >> 63 else word


def is_canonical(gva: GuestVirtualAddress, address_bits: int = 48) -> bool:
    """True if ``gva`` is canonical for ``address_bits`` (48 or 57) bits of virtual address."""
    top = signed64(gva) >> (address_bits - 1)
    return top in (0, -1)
