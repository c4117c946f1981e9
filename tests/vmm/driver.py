# SPDX-License-Identifier: Apache-2.0
"""A processor's memory accesses without a processor: one access at a time, through the VMM.

``Driver`` keeps guest page tables in guest memory, edits them with guest writes as an operating
system does, and does what the run loop does with each status. It caches no translations.
"""

from __future__ import annotations

import struct

from memvirt.machine.memory import MachineMemory
from memvirt.mmu.access import FLUSH_AND_RETRY, NEED_FRAMES, NEED_PAGE, OK, READ, TRUE_FAULT, WRITE
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.translate import access, note_flush

PRESENT, WRITABLE, USER, ACCESSED, DIRTY = 1, 2, 4, 0x20, 0x40
TABLES_PPN = 0  # root, PDPT, PD and four page tables, then a second root
ROOTS = (0, 7)
TABLE_WINDOW = 0x600000  # the guest sees its tables here: virtual pages 0x600 and up
DATA_PAGES = 1024  # virtual pages 0 to 1023 may be mapped


class PageFault(Exception):
    """The guest's own tables deny an access."""

    def __init__(self, error: int) -> None:
        super().__init__(f"#PF({error:#x})")
        self.error = error


class Driver:
    """A VM of ``pages`` pages whose tables identity-map nothing but themselves, at the window."""

    def __init__(
        self,
        paging: PagingMode,
        *,
        pages: int = 64,
        frames: int = 1024,
        scatter_seed: int | None = 3,
    ) -> None:
        self.machine = MachineMemory(frames, scatter_seed=scatter_seed)
        self.vmm = VirtualMachineMonitor(self.machine, pages, paging)
        mmu = self.vmm.state.mmu
        mmu.cr0, mmu.cr4, mmu.efer = 0x80010001, 0x20, 0xD00
        mmu.cpl = 0
        flags = PRESENT | WRITABLE | USER
        for root in ROOTS:
            self._store(root, 0, (1 << 12) | flags)
        self._store(1, 0, (2 << 12) | flags)
        for table in range(4):
            self._store(2, table, ((3 + table) << 12) | flags)
        for page in range(8):
            self._store(6, page, (page << 12) | flags)
        self.load_root(0)

    def _store(self, ppn: int, slot: int, entry: int) -> None:
        self.vmm.write_physical((ppn << 12) + slot * 8, struct.pack("<Q", entry))

    def load_root(self, number: int) -> None:
        """``mov cr3``: both roots share everything below them."""
        self.vmm.state.mmu.cr3 = ROOTS[number] << 12

    def load_control(self, *, cr3: int, cr4: int, efer: int) -> None:
        """Change CR3, CR4 and EFER, whatever that makes of the guest's tables."""
        mmu = self.vmm.state.mmu
        mmu.cr3, mmu.cr4, mmu.efer = cr3, cr4, efer

    def attempt(self, gva: int, kind: int) -> int | None:
        """One access as the guest may try it: the machine address, -1 for no memory, None: #PF."""
        try:
            return self._translate(gva, kind)
        except PageFault:
            return None

    def _flush(self) -> None:
        note_flush(self.vmm.state)

    def _translate(self, gva: int, kind: int) -> int:
        for _ in range(64):
            status = access(self.vmm.state, gva, kind)
            if status == OK:
                return int(self.vmm.state.mmu.out_machine_address)
            if status == TRUE_FAULT:
                raise PageFault(int(self.vmm.state.mmu.fault_error))
            if status == FLUSH_AND_RETRY:
                self._flush()
            elif status == NEED_FRAMES:
                self.vmm.reserve.refill()
            elif status == NEED_PAGE:
                state = self.vmm.state
                self.vmm.bring_back(int(state.exit_ppn), write=bool(state.exit_write))
            else:
                raise AssertionError(f"status {status}")
        raise AssertionError("an access that never ends")

    def read(self, gva: int) -> int:
        """Load 8 bytes. Raises PageFault."""
        address = self._translate(gva, READ)
        assert address >= 0
        return int.from_bytes(self.machine.content[address : address + 8].tobytes(), "little")

    def write(self, gva: int, value: int) -> None:
        """Store 8 bytes. Raises PageFault."""
        address = self._translate(gva, WRITE)
        assert address >= 0
        self.machine.content[address : address + 8] = list(value.to_bytes(8, "little"))

    def set_entry(self, virtual_page: int, entry: int) -> None:
        """Edit the leaf entry of a virtual page, by a guest write to its own table."""
        table = 3 + (virtual_page >> 9)
        self.write(TABLE_WINDOW + (table << 12) + (virtual_page & 511) * 8, entry)

    def entry(self, virtual_page: int) -> int:
        """The leaf entry as the guest reads it."""
        table = 3 + (virtual_page >> 9)
        return self.read(TABLE_WINDOW + (table << 12) + (virtual_page & 511) * 8)
