# SPDX-License-Identifier: Apache-2.0
"""The one door through which the processor gets translations, in whichever paging mode.

What the processor may keep of an answer is its own matter, within two obligations. It drops its
translations when it is told to (FLUSH_AND_RETRY, ``Stale``), and says so with ``note_flush``. And
it marks the page of each translation it keeps that allows writes (``FLAG_WRITE_CACHED``): a page
without the mark can be traced with no flush.
"""

from __future__ import annotations

from memvirt.address import GuestVirtualAddress, MachineAddress
from memvirt.compiled import compiled
from memvirt.mmu.access import NOT_CANONICAL, TRUE_FAULT
from memvirt.mmu.entry import CR4_LA57, EFER_LMA

from .paging.flat import flat_access
from .paging.mode import PAGING_NESTED, PAGING_SHADOW
from .paging.nested import nested_access
from .paging.shadow import shadow_access
from .vmm_state import VmmState

NO_MEMORY = MachineAddress(-1)  # out_machine_address of an access that reaches a device, or nothing


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
    if vmm.paging == PAGING_SHADOW:
        status = shadow_access(vmm, gva, kind)
    elif vmm.paging == PAGING_NESTED:
        status = nested_access(vmm, gva, kind)
    else:
        status = flat_access(vmm, gva, kind)
    if status == TRUE_FAULT:
        vmm.true_faults += 1
    return int(status)


@compiled
def note_flush(vmm: VmmState) -> None:
    """The processor has dropped every translation it kept."""
    vmm.shadow.stale = 0
