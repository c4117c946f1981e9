# SPDX-License-Identifier: Apache-2.0
"""What the observers read: one stopped VM, live or from a snapshot file. Nothing is changed.

A snapshot is a compressed NumPy archive: the VMM's record, the pmap, the frames that belong to
the VM (with the shadow or nested tables among them), the pages kept aside, and the registers.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES, unsigned64
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmm.content import SWAP
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import PageState
from memvirt.vmm.vmm_state import VMM_DTYPE, VmmState

FORMAT = "memvirt snapshot 2"
REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12",
    "r13", "r14", "r15", "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer",
)  # fmt: skip


class SnapshotError(Exception):
    """A file that is no snapshot, or a damaged one; the message names it."""


@dataclass(frozen=True)
class VmView:
    """One stopped VM. Frames are bytes by MPN; ``held`` is content by slot of the backing store."""

    name: str
    paging: PagingMode
    registers: Mapping[str, int]
    vmm: VmmState
    state: np.ndarray[Any, np.dtype[np.uint8]]
    frame: np.ndarray[Any, np.dtype[np.uint32]]
    flags: np.ndarray[Any, np.dtype[np.uint8]]
    frames: Mapping[int, bytes]
    held: Mapping[int, bytes]

    @property
    def pages(self) -> int:
        return int(self.state.size)

    def state_of(self, ppn: int) -> PageState:
        return PageState(int(self.state[ppn]))

    def read_page(self, ppn: int) -> bytes:
        """The page as the guest would read it. Raises IndexError beyond the VM's memory."""
        if not 0 <= ppn < self.pages:
            raise IndexError(f"PPN {ppn:#x} is beyond the VM's {self.pages} guest-physical pages")
        state = self.state_of(ppn)
        if state is PageState.UNMAPPED:
            return bytes(PAGE_BYTES)
        if state is PageState.SWAPPED:
            return self.held[int(self.frame[ppn])]
        return self.frames[int(self.frame[ppn])]

    def read_entry(self, gpa: int, size: int) -> int:
        """A page-table entry of ``size`` bytes at a guest-physical address."""
        offset = gpa % PAGE_BYTES
        return int.from_bytes(self.read_page(gpa // PAGE_BYTES)[offset : offset + size], "little")

    def read_table(self, mpn: int, slot: int) -> int:
        """Entry ``slot`` of the shadow or nested table in frame ``mpn``."""
        return int.from_bytes(self.frames[mpn][slot * 8 : slot * 8 + 8], "little")


class _LiveFrames(Mapping[int, bytes]):
    def __init__(self, vm: VirtualMachine) -> None:
        self._machine = vm.machine

    def __getitem__(self, mpn: int) -> bytes:
        return self._machine.page(mpn).tobytes()

    def __iter__(self) -> Any:
        return iter(range(self._machine.frames))

    def __len__(self) -> int:
        return self._machine.frames


class _LiveHeld(Mapping[int, bytes]):
    def __init__(self, vm: VirtualMachine) -> None:
        self._vmm = vm.vmm

    def _slots(self) -> list[int]:
        pmap = self._vmm.pmap
        return [int(slot) for slot in pmap.frame[pmap.state == PageState.SWAPPED]]

    def __getitem__(self, slot: int) -> bytes:
        return self._vmm.contents.stores[SWAP].read(slot)

    def __iter__(self) -> Any:
        return iter(self._slots())

    def __len__(self) -> int:
        return len(self._slots())


def live_view(vm: VirtualMachine) -> VmView:
    """A view of a VM whose processor is stopped; valid until it runs again."""
    pmap = vm.vmm.pmap
    return VmView(
        name=vm.name,
        paging=vm.paging,
        registers={name: vm.processor.get(name) for name in REGISTERS},
        vmm=vm.vmm.state,
        state=pmap.state,
        frame=pmap.frame,
        flags=pmap.flags,
        frames=_LiveFrames(vm),
        held=_LiveHeld(vm),
    )


def save_snapshot(vm: VirtualMachine, path: str | Path) -> None:
    """Write what a view needs to ``path``, all or nothing."""
    view, vmm = live_view(vm), vm.vmm
    shared = vmm.pmap.frame[vmm.pmap.state == PageState.SHARED]
    mpns = np.unique(np.concatenate((vmm.machine.owned_by(vm.vm_id), shared)))
    slots = np.fromiter(view.held, np.uint32)
    held = b"".join(view.held[int(slot)] for slot in slots)
    meta = {
        "format": FORMAT,
        "name": vm.name,
        "paging": vm.paging.name,
        "registers": dict(view.registers),
    }
    target = Path(path)
    partial = target.with_name(target.name + ".part")
    with partial.open("wb") as file:
        np.savez_compressed(
            file,
            meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
            vmm=np.frombuffer(vmm.state_bytes(), np.uint8),
            state=vmm.pmap.state,
            frame=vmm.pmap.frame,
            flags=vmm.pmap.flags,
            mpns=mpns,
            content=vmm.machine.content.reshape(-1, PAGE_BYTES)[mpns],
            slots=slots,
            held=np.frombuffer(held, np.uint8),
        )
    partial.replace(target)


def load_snapshot(path: str | Path) -> VmView:
    """The view that ``save_snapshot`` wrote. Raises SnapshotError."""
    try:
        with np.load(path) as archive:
            parts = {name: archive[name] for name in archive.files}
        meta = json.loads(parts["meta"].tobytes())
        if meta["format"] != FORMAT:
            raise SnapshotError(f"{path}: {meta['format']}, where {FORMAT} is needed")
        vmm = parts["vmm"].view(VMM_DTYPE)[0]
        content, held = parts["content"], parts["held"].reshape(-1, PAGE_BYTES)
        return VmView(
            name=meta["name"],
            paging=PagingMode[meta["paging"]],
            registers={name: unsigned64(word) for name, word in meta["registers"].items()},
            vmm=vmm,
            state=parts["state"],
            frame=parts["frame"],
            flags=parts["flags"],
            frames={int(mpn): content[i].tobytes() for i, mpn in enumerate(parts["mpns"])},
            held={int(slot): held[i].tobytes() for i, slot in enumerate(parts["slots"])},
        )
    except OSError as error:
        raise SnapshotError(f"{path}: {error.strerror or error}") from error
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SnapshotError(f"{path}: not a memvirt snapshot ({error})") from error
