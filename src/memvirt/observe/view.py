# SPDX-License-Identifier: Apache-2.0
"""What the observers read: one stopped VM, live or from a snapshot (``snapshot``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from memvirt.address import (
    PAGE_BYTES,
    GuestPhysicalAddress,
    MachinePageNumber,
    PhysicalPageNumber,
    PpnArray,
    page_offset,
    physical_page_number,
    unsigned64,
)
from memvirt.machine.memory import MachineMemory
from memvirt.notebook import html_table, one_line
from memvirt.platform.text_screen import TextMode, TextScreen, read_screen, text_mode
from memvirt.size import format_size
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.pmap import KEPT, RESIDENT, PageState
from memvirt.vmm.stores.backing import BackingStoreError, PageCorrupted

__all__ = ["PageUnavailable", "Translation", "VmView", "live_view"]

REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12",
    "r13", "r14", "r15", "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer",
)  # fmt: skip


class PageUnavailable(Exception):
    """A page or a frame whose content cannot be had; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class Translation:
    """What, beside registers and tables in memory, a translation depends on.

    ``root`` is the MPN of the nested table's root or of the current shadow root, None if there is
    none; the shadow root belongs to ``root_cr3``. ``levels`` are those of the table at ``root``.
    """

    privilege_level: int
    physical_address_bits: int
    has_1gib_pages: bool
    root: MachinePageNumber | None
    root_cr3: int
    levels: int


@dataclass(frozen=True)
class VmView:
    """One stopped VM.

    ``state``, ``frame`` and ``flags`` are the pmap's, by PPN; ``frame`` is an MPN for resident
    pages, else a slot of the store that the state names. ``frames`` is the content of frames by
    MPN, ``kept`` that of compressed and swapped pages by PPN. Both may raise PageUnavailable.
    ``display`` is what the VGA is set to, None in a graphics mode.
    """

    name: str
    paging: PagingMode
    registers: Mapping[str, int]
    translation: Translation
    state: np.ndarray[Any, np.dtype[np.uint8]]
    frame: np.ndarray[Any, np.dtype[np.uint32]]
    flags: np.ndarray[Any, np.dtype[np.uint8]]
    frames: Mapping[MachinePageNumber, bytes]
    kept: Mapping[PhysicalPageNumber, bytes]
    display: TextMode | None = None

    def __repr__(self) -> str:
        size = format_size(self.pages * PAGE_BYTES)
        return f"<VmView of {one_line(self.name)!r}: {size}, {self.paging.name.lower()} paging>"

    def _repr_html_(self) -> str:
        """Pages by state, as a table for notebooks."""
        counts = np.bincount(self.state, minlength=len(PageState))
        rows = ((state.name.lower(), int(counts[state])) for state in PageState)
        return html_table(repr(self)[1:-1], ("state", "pages"), rows)

    @property
    def pages(self) -> int:
        """Number of guest-physical pages: PPNs are below."""
        return int(self.state.size)

    def state_of(self, ppn: PhysicalPageNumber) -> PageState:
        """The pmap's state of one page. Raises IndexError beyond the VM's memory."""
        return PageState(int(self.state[ppn]))

    def frame_of(self, ppn: PhysicalPageNumber) -> MachinePageNumber | None:
        """MPN of a resident page, None of any other, and beyond the VM's memory."""
        if 0 <= ppn < self.pages and self.state_of(ppn) in RESIDENT:
            return MachinePageNumber(int(self.frame[ppn]))
        return None

    def read_page(self, ppn: PhysicalPageNumber) -> bytes:
        """The page as the guest would read it.

        Raises IndexError beyond the VM's memory, PageUnavailable.
        """
        if not 0 <= ppn < self.pages:
            raise IndexError(f"PPN {ppn:#x} is beyond the VM's {self.pages} guest-physical pages")
        state = self.state_of(ppn)
        if state is PageState.UNMAPPED:
            return bytes(PAGE_BYTES)
        if state in KEPT:
            return self.kept[ppn]
        return self.frames[MachinePageNumber(int(self.frame[ppn]))]

    def read_entry(self, gpa: GuestPhysicalAddress, size: int) -> int:
        """A page-table entry of ``size`` bytes at a guest-physical address. Raises as read_page."""
        page, offset = self.read_page(physical_page_number(gpa)), page_offset(gpa)
        return int.from_bytes(page[offset : offset + size], "little")

    def screen(self) -> TextScreen | None:
        """What the VGA shows; None in a graphics mode. Raises PageUnavailable."""
        if self.display is None:
            return None
        return read_screen(self.display, self.read_page, self.pages)

    def read_table(self, mpn: MachinePageNumber, slot: int) -> int:
        """Entry ``slot`` of the shadow or nested table in frame ``mpn``. Raises PageUnavailable."""
        return int.from_bytes(self.frames[mpn][slot * 8 : slot * 8 + 8], "little")


class _LiveFrames(Mapping[MachinePageNumber, bytes]):
    def __init__(self, machine: MachineMemory) -> None:
        self._machine = machine

    def __getitem__(self, mpn: MachinePageNumber) -> bytes:
        if not 0 <= mpn < self._machine.frames:
            raise PageUnavailable(f"MPN {mpn:#x} is beyond the machine's memory")
        return self._machine.page(mpn).tobytes()

    def __iter__(self) -> Iterator[MachinePageNumber]:
        return map(MachinePageNumber, range(self._machine.frames))

    def __len__(self) -> int:
        return self._machine.frames


class _LiveKept(Mapping[PhysicalPageNumber, bytes]):
    def __init__(self, vmm: VirtualMachineMonitor) -> None:
        self._vmm = vmm

    def _ppns(self) -> PpnArray:
        return self._vmm.contents.kept()

    def __getitem__(self, ppn: PhysicalPageNumber) -> bytes:
        try:
            return self._vmm.read_page(ppn)
        except (BackingStoreError, PageCorrupted) as error:
            raise PageUnavailable(f"PPN {ppn:#x}: {error}") from error

    def __iter__(self) -> Iterator[PhysicalPageNumber]:
        return iter(self._ppns().tolist())

    def __len__(self) -> int:
        return int(self._ppns().size)


def _translation(vmm: VirtualMachineMonitor, privilege_level: int) -> Translation:
    mmu, shadow = vmm.state.mmu, vmm.state.shadow
    root, levels = None, 4
    if vmm.paging is PagingMode.NESTED:
        root = MachinePageNumber(int(mmu.nested_root))
    elif vmm.paging is PagingMode.SHADOW and shadow.root_index >= 0:
        root, levels = MachinePageNumber(int(mmu.shadow_root)), int(mmu.shadow_levels)
    return Translation(
        privilege_level=privilege_level,
        physical_address_bits=int(mmu.physical_address_bits),
        has_1gib_pages=bool(mmu.has_1gib_pages),
        root=root,
        root_cr3=unsigned64(shadow.root_cr3) if vmm.paging is PagingMode.SHADOW else 0,
        levels=levels,
    )


def monitor_view(
    vmm: VirtualMachineMonitor,
    *,
    name: str,
    registers: Mapping[str, int],
    privilege_level: int,
    display: TextMode | None = None,
) -> VmView:
    """A view of a VMM whose processor is stopped; valid until it runs again."""
    pmap = vmm.pmap
    return VmView(
        name=name,
        paging=vmm.paging,
        registers=registers,
        translation=_translation(vmm, privilege_level),
        state=pmap.state,
        frame=pmap.frame,
        flags=pmap.flags,
        frames=_LiveFrames(vmm.machine),
        kept=_LiveKept(vmm),
        display=display,
    )


def live_view(vm: VirtualMachine) -> VmView:
    """A view of a VM whose processor is stopped; valid until it runs again."""
    return monitor_view(
        vm.vmm,
        name=vm.name,
        registers={name: vm.processor.get(name) for name in REGISTERS},
        privilege_level=vm.processor.privilege_level,
        display=text_mode(vm.pc[0].vga),
    )
