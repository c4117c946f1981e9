# SPDX-License-Identifier: Apache-2.0
"""The rules of the guest's page tables, for observers: those of the compiled walker, no others.

Whether an entry is a leaf, has a reserved bit, and what its rights allow is asked of
``mmu.guest_walk``, so that what people are shown is what the processor does. Entries are unsigned
64-bit numbers here.
"""

from __future__ import annotations

from memvirt.address import GuestPhysicalAddress, GuestVirtualAddress, signed64
from memvirt.mmu.access import FETCH, READ, WRITE
from memvirt.mmu.entry import (
    CR0_WP,
    FAULT_PRESENT,
    FAULT_RESERVED,
    MODE_PAE,
    NO_EXECUTE,
    USER,
    WRITABLE,
)
from memvirt.mmu.guest_walk import (
    access_error,
    has_reserved_bits,
    is_leaf,
    leaf_address,
    paging_mode,
    permission_error,
)
from memvirt.mmu.mmu_state import MMU_DTYPE, MmuState
from memvirt.state_record import new_record

from .view import VmView

ACCESSES = {"read": READ, "write": WRITE, "fetch": FETCH}
_ALIGNMENT_CHECK = 1 << 18  # RFLAGS.AC


class GuestRules:
    """The rules as they are for one VM now: its control registers, mode and privilege level."""

    def __init__(self, view: VmView) -> None:
        registers = view.registers
        self._state: MmuState = new_record(MMU_DTYPE)[0]
        for name in ("cr0", "cr3", "cr4", "efer"):
            setattr(self._state, name, signed64(registers[name]))
        self._state.cpl = view.translation.privilege_level
        self._state.alignment_check = registers["rflags"] & _ALIGNMENT_CHECK
        self._state.physical_address_bits = view.translation.physical_address_bits
        self._state.has_1gib_pages = view.translation.has_1gib_pages
        state = self._state
        self.mode = int(paging_mode(int(state.cr0), int(state.cr4), int(state.efer)))
        self._user, self._writable, self._no_execute = True, True, False

    def is_leaf(self, level: int, entry: int) -> bool:
        """True if a present entry maps a page rather than points to a table."""
        return bool(is_leaf(self._state, self.mode, level, signed64(entry)))

    def has_reserved_bits(self, level: int, entry: int) -> bool:
        """True if a present entry has a reserved bit set."""
        return bool(has_reserved_bits(self._state, self.mode, level, signed64(entry)))

    def leaf_address(
        self, level: int, entry: int, gva: GuestVirtualAddress
    ) -> GuestPhysicalAddress:
        """The guest-physical address of ``gva`` by an entry that maps a page."""
        signed = GuestVirtualAddress(signed64(gva))
        return leaf_address(self.mode, level, signed64(entry), signed)

    def restrict(self, level: int, entry: int) -> None:
        """Take an entry on the way into account: a right is there only if all entries have it."""
        if self.mode == MODE_PAE and level == 3:
            return  # a PAE PDPTE carries no rights
        self._user = self._user and entry & USER != 0
        self._writable = self._writable and entry & WRITABLE != 0
        self._no_execute = self._no_execute or signed64(entry) & NO_EXECUTE != 0

    def faults_absent(self) -> dict[str, int | None]:
        """The error code of each access's #PF where an entry is not present."""
        return {name: int(access_error(self._state, kind)) for name, kind in ACCESSES.items()}

    def faults_reserved(self) -> dict[str, int | None]:
        """The error code of each access's #PF where an entry has a reserved bit set."""
        present = FAULT_PRESENT | FAULT_RESERVED
        return {name: (code or 0) | present for name, code in self.faults_absent().items()}

    def faults(self) -> dict[str, int | None]:
        """The error code of each access's #PF by the rights of the entries seen; None: allowed."""
        protected = bool(int(self._state.cr0) & CR0_WP)
        codes = {
            name: int(
                permission_error(
                    self._state, self._user, self._writable, self._no_execute, kind, protected
                )
            )
            for name, kind in ACCESSES.items()
        }
        return {name: code or None for name, code in codes.items()}
