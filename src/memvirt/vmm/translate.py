# SPDX-License-Identifier: Apache-2.0
"""The one door through which the processor gets translations, in whichever paging mode.

What the processor may keep of an answer is its own matter, within two obligations. It drops its
translations when it is told to (FLUSH_AND_RETRY, ``Stale``), and says so with ``note_flush``. And
it marks the page of each translation it keeps that allows writes (``FLAG_WRITE_CACHED``): a page
without the mark can be traced with no flush.

Here it is also noticed which pages are written to, as the processor's dirty bit of a second-level
entry does it (SDM vol. 3C section 29.3.5): one bit a page in place of one in each entry that maps
it, the same for shadow and nested tables. While a page counts as unwritten, only a WRITE is given
the right to write, and ends that.
"""

from __future__ import annotations

from memvirt.address import GuestVirtualAddress, MachineAddress, machine_page_number
from memvirt.compiled import compiled
from memvirt.mmu.access import NOT_CANONICAL, OK, TRUE_FAULT, WRITE
from memvirt.mmu.entry import CR4_LA57, EFER_LMA, WRITABLE
from memvirt.mmu.native import load8
from memvirt.mmu.page_state import FLAG_UNWRITTEN
from memvirt.mmu.second_level import note_write

from .frames import frame_ppn
from .paging.flat import flat_access
from .paging.mode import PAGING_NESTED, PAGING_SHADOW
from .paging.nested import nested_access
from .paging.shadow import shadow_access
from .vmm_state import VmmState

NO_MEMORY = MachineAddress(-1)  # out_machine_address of an access that reaches a device, or nothing


@compiled
def _notice(vmm: VmmState, kind: int) -> None:
    """End that the page of a granted access counts as unwritten, or see to it that a write will."""
    mmu = vmm.mmu
    ppn = frame_ppn(vmm, machine_page_number(mmu.out_machine_address))
    if ppn < 0 or load8(mmu.pmap_flags_at + ppn) & FLAG_UNWRITTEN == 0:
        return
    if kind == WRITE:
        note_write(mmu, ppn)
    else:
        mmu.out_permissions &= ~WRITABLE


@compiled
def access(vmm: VmmState, gva: GuestVirtualAddress, kind: int) -> int:
    """Translate one access (READ, WRITE, FETCH) in the VM's paging mode; OK or a status.

    OK: ``mmu.out_machine_address`` (or NO_MEMORY, with ``mmu.walk_gpa``), ``mmu.out_permissions``
    (PRESENT, WRITABLE, USER, NO_EXECUTE bits for any access, this one included) and
    ``mmu.out_large_page`` (bytes of the guest's page, 0 if it is not large). The caller has put the
    control registers and the privilege level into ``vmm.mmu``.
    """
    mmu = vmm.mmu
    if mmu.efer & EFER_LMA != 0:
        sign = gva >> (56 if mmu.cr4 & CR4_LA57 else 47)
        if sign != 0 and sign != -1:
            return NOT_CANONICAL
    else:
        # Linear addresses have 32 bits there (SDM vol. 3A section 3.3): an access that crosses
        # their end goes on at 0.
        gva = GuestVirtualAddress(gva & 0xFFFF_FFFF)
    if vmm.paging == PAGING_SHADOW:
        status = shadow_access(vmm, gva, kind)
    elif vmm.paging == PAGING_NESTED:
        status = nested_access(vmm, gva, kind)
    else:
        status = flat_access(vmm, gva, kind)
    if status == OK and mmu.out_machine_address >= 0:
        _notice(vmm, kind)
    elif status == TRUE_FAULT:
        vmm.true_faults += 1
    return int(status)


@compiled
def note_flush(vmm: VmmState) -> None:
    """The processor has dropped every translation it kept."""
    vmm.shadow.stale = 0
