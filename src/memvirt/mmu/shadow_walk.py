# SPDX-License-Identifier: Apache-2.0
"""The walk of a shadow page table: the only table the processor walks in shadow mode.

Shadow tables have the native long-mode format whatever mode the guest is in, four levels or, for
a guest with 57-bit addresses, five. They lie in machine memory, owned by the VM's VMM. The walk is
done with CR0.WP in force, since a write-protected entry is how the VMM traces and shares pages.
"""

from __future__ import annotations

from memvirt.address import GuestVirtualAddress, MachineAddress
from memvirt.compiled import compiled

from .access import WRITE
from .entry import (
    ENTRY_ADDRESS_MASK,
    NO_EXECUTE,
    PRESENT,
    SHADOW_LARGE_MASK,
    SHADOW_LARGE_SHIFT,
    USER,
    WRITABLE,
)
from .guest_walk import permission_error
from .mmu_state import MmuState
from .native import load64
from .second_level import MISS


@compiled
def large_page_bytes(entry: int) -> int:
    """Size of the guest's page behind a last-level shadow entry, 0 if it is not large."""
    kind = (entry & SHADOW_LARGE_MASK) >> SHADOW_LARGE_SHIFT
    if kind == 0:
        return 0
    return 1 << 30 if kind == 3 else kind << 21


@compiled
def shadow_walk(mmu: MmuState, gva: GuestVirtualAddress, access: int) -> MachineAddress:
    """Translate ``gva`` by the current shadow root.

    Returns the machine address, with the combined rights (PRESENT, USER, WRITABLE, NO_EXECUTE
    bits) in ``out_permissions``; or MISS if an entry is absent or its rights do not allow the
    access, which the VMM then resolves. Each entry read counts in ``walk_references``.
    """
    table = mmu.shadow_root << 12
    shift = 9 * mmu.shadow_levels + 3
    rights = PRESENT | USER | WRITABLE
    no_execute = 0
    while True:
        entry = load64(mmu.memory_at + table + ((gva >> shift) & 511) * 8)
        mmu.walk_references += 1
        if entry & PRESENT == 0:
            return MISS
        rights &= entry
        no_execute |= entry & NO_EXECUTE
        table = entry & ENTRY_ADDRESS_MASK
        if shift == 12:
            mmu.out_large_page = large_page_bytes(entry)
            break
        shift -= 9
    mmu.out_permissions = rights | no_execute
    return MachineAddress(checked(mmu, MachineAddress(table | (gva & 0xFFF)), access))


@compiled
def checked(mmu: MmuState, machine_address: MachineAddress, access: int) -> MachineAddress:
    """``machine_address`` if the combined rights in ``out_permissions`` allow the access."""
    rights = mmu.out_permissions
    user, writable = rights & USER != 0, rights & WRITABLE != 0
    if access == WRITE and not writable:
        return MISS
    if permission_error(mmu, user, writable, rights & NO_EXECUTE != 0, access, True) != 0:
        return MISS
    return machine_address
