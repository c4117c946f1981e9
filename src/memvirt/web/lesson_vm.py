# SPDX-License-Identifier: Apache-2.0
"""The VM of the lesson: 16 pages under a real VMM, one access at a time, without a processor.

It keeps four-level page tables in its own memory, as an operating system does, and does with each
status of an access what the run loop does.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from memvirt.address import GuestPhysicalAddress, GuestVirtualAddress, PhysicalPageNumber
from memvirt.machine.memory import MachineMemory
from memvirt.mmu.access import (
    FLUSH_AND_RETRY,
    NEED_FRAMES,
    NEED_PAGE,
    OK,
    TRUE_FAULT,
    WRITE,
)
from memvirt.mmu.entry import ACCESSED, DIRTY, PRESENT, USER, WRITABLE
from memvirt.observe.view import REGISTERS, VmView, monitor_view
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.translate import access, note_flush

PAGES, FRAMES = 16, 48
VIRTUAL_PAGES = 8  # of them the guest's tables may map
_ROOT, _POINTERS, _DIRECTORY, _TABLE = range(4)  # PPNs of its page tables
_WINDOW = 0x1F0  # virtual page under which the guest sees its page table
_CR0, _CR4, _EFER = 0x8001_0001, 0x20, 0xD00  # paging and write protection, PAE, long mode and NX
_MOST_TRIES = 64


@dataclass(slots=True)
class Attempt:
    """What one access came to: the exits on the way, by meaning, and the error code of a #PF."""

    exits: list[str] = field(default_factory=list)
    fault: int | None = None
    machine_address: int | None = None


class LessonVm:
    """See the module docstring. Paging is shadow or nested."""

    def __init__(self, paging: PagingMode) -> None:
        self.machine = MachineMemory(FRAMES, scatter_seed=7)
        self.vmm = VirtualMachineMonitor(self.machine, PAGES, paging)
        mmu = self.vmm.state.mmu
        mmu.cr0, mmu.cr4, mmu.efer, mmu.cpl = _CR0, _CR4, _EFER, 0
        mmu.cr3 = _ROOT << 12
        for table, below in ((_ROOT, _POINTERS), (_POINTERS, _DIRECTORY), (_DIRECTORY, _TABLE)):
            self._store(table, 0, below)
        self._store(_TABLE, _WINDOW, _TABLE)

    def _store(self, table: int, slot: int, target: int) -> None:
        entry = target << 12 | PRESENT | WRITABLE | USER | ACCESSED
        self.vmm.write_physical(
            GuestPhysicalAddress((table << 12) + slot * 8), struct.pack("<Q", entry)
        )

    def preset(self, virtual_page: int, ppn: int) -> None:
        """A mapping that was there before the lesson began."""
        self._store(_TABLE, virtual_page, ppn)

    def attempt(self, gva: GuestVirtualAddress, kind: int) -> Attempt:
        """One access, until it is done or the guest's own tables deny it."""
        attempt, state = Attempt(), self.vmm.state
        for _ in range(_MOST_TRIES):
            status = access(state, gva, kind)
            if status == OK:
                attempt.machine_address = int(state.mmu.out_machine_address)
                return attempt
            if status == TRUE_FAULT:
                attempt.fault = int(state.mmu.fault_error)
                return attempt
            if status == FLUSH_AND_RETRY:
                attempt.exits.append("cached translations had to go")
                note_flush(state)
            elif status == NEED_FRAMES:
                attempt.exits.append("the reserve of zeroed frames was empty and was filled")
                self.vmm.reserve.refill()
            elif status == NEED_PAGE:
                ppn, write = PhysicalPageNumber(int(state.exit_ppn)), bool(state.exit_write)
                was = self.vmm.pmap.state_of(ppn).name.lower()
                done = "may not be written in place" if was == "shared" else "was brought back"
                attempt.exits.append(f"an exit into the VMM: PPN {ppn:#x} was {was} and {done}")
                self.vmm.bring_back(ppn, write=write)
            else:
                raise AssertionError(f"status {status} in a lesson")
        raise AssertionError("an access that never ends")

    def put(self, attempt: Attempt, text: bytes) -> None:
        """What the write was for: bytes at the machine address it led to."""
        assert attempt.machine_address is not None
        at = attempt.machine_address
        self.machine.content[at : at + len(text)] = list(text)

    def edit(self, virtual_page: int, ppn: int) -> Attempt:
        """The guest's kernel fills an entry of its own page table, by a write of its own."""
        attempt = self.attempt(GuestVirtualAddress((_WINDOW << 12) + virtual_page * 8), WRITE)
        entry = ppn << 12 | PRESENT | WRITABLE | USER
        self.put(attempt, struct.pack("<Q", entry))
        return attempt

    def entries(self) -> list[int]:
        """The entries of the guest's page table for ``VIRTUAL_PAGES``, A and D bits left out."""
        raw = self.vmm.read_physical(GuestPhysicalAddress(_TABLE << 12), VIRTUAL_PAGES * 8)
        return [entry & ~(ACCESSED | DIRTY) for entry in struct.unpack(f"<{VIRTUAL_PAGES}Q", raw)]

    def view(self) -> VmView:
        mmu = self.vmm.state.mmu
        registers = dict.fromkeys(REGISTERS, 0)
        registers |= {name: int(getattr(mmu, name)) for name in ("cr0", "cr3", "cr4", "efer")}
        return monitor_view(self.vmm, name="lesson", registers=registers, privilege_level=0)

    def power_off(self) -> None:
        self.vmm.power_off()
