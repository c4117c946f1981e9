# SPDX-License-Identifier: Apache-2.0
"""The address spaces, their types, and the arithmetic between them.

======================  ==========================  =====================================
space                   address type                page-number type, and its arrays
======================  ==========================  =====================================
guest virtual           ``GuestVirtualAddress``     (none: the guest's own business)
guest physical          ``GuestPhysicalAddress``    ``PhysicalPageNumber``, ``PpnArray``
machine                 ``MachineAddress``          ``MachinePageNumber``, ``MpnArray``
host virtual            ``HostVirtualAddress``      (none: only QEMU's memory has it)
======================  ==========================  =====================================

A PPN is a guest-physical page, an MPN a frame of machine memory. The types are distinct to the
type checker, so a PPN cannot be passed where an MPN is meant, nor an array of them. They cost
nothing at run time: a type called on a number, or on an array, gives back the very same.
Arithmetic leaves the space: ``ppn + 1`` is a bare number until it is named again, by the type or by
a function of this module. Parts of an array, and its elements, stay in the space. Compiled kernels
may call the types and ``physical_page_number`` and the functions beside it (``compiled``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NewType

__all__ = [
    "ADDRESS_BITS_MASK",
    "PAGE_BYTES",
    "PAGE_SHIFT",
    "GuestPhysicalAddress",
    "GuestVirtualAddress",
    "HostVirtualAddress",
    "MachineAddress",
    "MachinePageNumber",
    "MpnArray",
    "PhysicalPageNumber",
    "PpnArray",
    "guest_physical_address",
    "is_canonical",
    "machine_address",
    "machine_page_number",
    "page_offset",
    "physical_page_number",
    "signed64",
    "unsigned64",
]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self, overload

    import numpy as np
    import numpy.typing as npt

    Mask = npt.NDArray[np.bool_]
    Positions = npt.NDArray[np.intp] | npt.NDArray[np.int64]

GuestVirtualAddress = NewType("GuestVirtualAddress", int)
GuestPhysicalAddress = NewType("GuestPhysicalAddress", int)
MachineAddress = NewType("MachineAddress", int)
HostVirtualAddress = NewType("HostVirtualAddress", int)
PhysicalPageNumber = NewType("PhysicalPageNumber", int)
MachinePageNumber = NewType("MachinePageNumber", int)

if TYPE_CHECKING:

    class PpnArray(np.ndarray[Any, np.dtype[Any]]):
        """PPNs: an integer array of shape (n,)."""

        def __new__(cls, ppns: npt.NDArray[Any]) -> Self: ...
        def copy(self, order: Any = ...) -> Self: ...
        def tolist(self) -> list[PhysicalPageNumber]: ...  # type: ignore[override]
        def __iter__(self) -> Iterator[PhysicalPageNumber]: ...  # type: ignore[override]
        @overload  # type: ignore[override]
        def __getitem__(self, key: int | np.integer[Any]) -> PhysicalPageNumber: ...
        @overload
        def __getitem__(self, key: slice | Mask | np.bool_ | Positions) -> PpnArray: ...
        def __getitem__(self, key: Any) -> Any: ...

    class MpnArray(np.ndarray[Any, np.dtype[Any]]):
        """MPNs: an integer array of shape (n,)."""

        def __new__(cls, mpns: npt.NDArray[Any]) -> Self: ...
        def copy(self, order: Any = ...) -> Self: ...
        def tolist(self) -> list[MachinePageNumber]: ...  # type: ignore[override]
        def __iter__(self) -> Iterator[MachinePageNumber]: ...  # type: ignore[override]
        @overload  # type: ignore[override]
        def __getitem__(self, key: int | np.integer[Any]) -> MachinePageNumber: ...
        @overload
        def __getitem__(self, key: slice | Mask | np.bool_ | Positions) -> MpnArray: ...
        def __getitem__(self, key: Any) -> Any: ...
else:
    PpnArray = NewType("PpnArray", object)
    MpnArray = NewType("MpnArray", object)

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
