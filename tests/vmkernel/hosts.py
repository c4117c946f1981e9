# SPDX-License-Identifier: Apache-2.0
"""A host without processors: VMMs under a VMkernel, driven one access at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memvirt.host.machine_frames import HostFrames
from memvirt.host.vmm_memory import VmmMemory
from memvirt.machine.memory import MachineMemory
from memvirt.mmu.access import FLUSH_AND_RETRY, NEED_FRAMES, NEED_PAGE, OK, READ, WRITE
from memvirt.vmkernel.admission import VmSettings
from memvirt.vmkernel.managed import ManagedVm
from memvirt.vmkernel.options import MemoryOptions
from memvirt.vmkernel.vmkernel import VmKernel
from memvirt.vmm.balloon import BalloonedPages
from memvirt.vmm.census import full_count
from memvirt.vmm.check import check_machine
from memvirt.vmm.content import COMPRESS, SWAP
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.reserve import FramesWanted
from memvirt.vmm.stores.compression_cache import CompressionCache
from memvirt.vmm.stores.swap_file import SwapFile, WriteBuffers
from memvirt.vmm.translate import access, note_flush

TABLE_WINDOW = 0x3FE00000  # where the guest sees nothing: paging is off, gVA = gPA
SECOND_NS = 1_000_000_000


class FakeBalloon:
    """A balloon whose guest gives up the pages it is told to, when ``serve`` is called."""

    def __init__(self, vmm: VirtualMachineMonitor) -> None:
        self.target = 0
        self.connected = True
        self.held: list[int] = []
        self._pages = BalloonedPages(vmm)

    @property
    def size(self) -> int:
        return len(self.held)

    def serve(self, spare: list[int]) -> list[int]:
        """Follow the target, giving up pages among ``spare``; returns the pages given up."""
        given: list[int] = []
        while self.size > self.target:
            self._pages.take_back(np.array([self.held.pop()], np.int64))
        for ppn in spare:
            if self.size >= self.target:
                break
            if ppn not in self.held and self._pages.give_up(np.array([ppn], np.int64))[0]:
                self.held.append(ppn)
                given.append(ppn)
        return given


class Guest:
    """One VM: with paging off its virtual addresses are its physical ones."""

    def __init__(self, host: Host, settings: VmSettings, paging: PagingMode, vm_id: int) -> None:
        self.host = host
        self.settings = settings
        host.kernel.admission.admit(settings, 32)
        host.kernel.make_room(80, settings.name)
        self.vmm = VirtualMachineMonitor(host.machine, settings.memory, paging, vm_id=vm_id)
        self.vmm.share_salt = host.kernel.salt(vm_id, settings.group)
        self.swap = SwapFile(host.folder / f"{vm_id}.vswp", settings.swap, host.buffers)
        self.vmm.contents.set_store(SWAP, self.swap)
        cache = host.kernel.cache_max(settings)
        if cache:
            self.vmm.contents.set_store(COMPRESS, CompressionCache(host.machine, vm_id, cache))
        self.vmm.reserve.give_back(0)
        self.vmm.reserve.managed = True
        self.balloon = FakeBalloon(self.vmm)
        memory = VmmMemory(self.vmm, swap=self.swap, balloon=self.balloon)
        self.managed: ManagedVm = host.kernel.power_on(memory, settings, 32)
        self.vmm.state.mmu.cr0 = 1  # protected mode, paging off

    def _address(self, gpa: int, kind: int) -> int:
        vmm = self.vmm
        for _ in range(64):
            status = access(self.vmm.state, gpa, kind)
            if status == OK:
                return int(vmm.state.mmu.out_machine_address)
            if status == FLUSH_AND_RETRY:
                note_flush(vmm.state)
                continue
            try:
                if status == NEED_FRAMES:
                    vmm.reserve.refill()
                elif status == NEED_PAGE:
                    write = bool(vmm.state.exit_write)
                    vmm.bring_back(int(vmm.state.exit_ppn), write=write)
                else:
                    raise AssertionError(f"status {status}")
            except FramesWanted:
                self.managed.waiting = True
                self.host.kernel.balance(0)
                self.managed.waiting = False
                if self.managed.condition.value != "running":
                    raise
        raise AssertionError("an access that never ends")

    def read(self, ppn: int, slot: int) -> int:
        """Eight bytes. Raises FramesWanted if the VM has to wait for others."""
        address = self._address((ppn << 12) + slot * 8, READ)
        raw = self.host.machine.content[address : address + 8].tobytes()
        return int.from_bytes(raw, "little")

    def write(self, ppn: int, slot: int, value: int) -> None:
        address = self._address((ppn << 12) + slot * 8, WRITE)
        raw = np.frombuffer(value.to_bytes(8, "little"), np.uint8)
        self.host.machine.content[address : address + 8] = raw

    def fill(self, ppn: int, content: bytes) -> None:
        """The whole page at once."""
        address = self._address(ppn << 12, WRITE) & ~0xFFF
        self.host.machine.content[address : address + 4096] = np.frombuffer(content, np.uint8)

    def power_off(self) -> None:
        self.host.kernel.power_off(self.managed)
        self.vmm.power_off()
        self.swap.close()


class Host:
    """Machine memory of ``frames`` frames, a VMkernel, and guests by number."""

    def __init__(
        self, folder: Path, frames: int, options: MemoryOptions, *, swap: int | None = None
    ) -> None:
        self.folder = folder
        self.machine = MachineMemory(frames, scatter_seed=5)
        self.buffers = WriteBuffers(self.machine, 8)
        self.kernel = VmKernel(
            HostFrames(self.machine), options, swap_pages=swap, own_frames=self.buffers.count
        )
        self.guests: dict[int, Guest] = {}
        self._ids = 0

    def power_on(self, settings: VmSettings, paging: PagingMode) -> Guest:
        """Raises AdmissionError."""
        self._ids += 1
        guest = Guest(self, settings, paging, self._ids)
        self.guests[self._ids] = guest
        return guest

    def power_off(self, number: int) -> None:
        self.guests.pop(number).power_off()

    def check(self) -> None:
        """No invariant is broken."""
        self.kernel.settle()
        assert check_machine(self.machine, [guest.vmm for guest in self.guests.values()]) == []
        for guest in self.guests.values():
            assert self.kernel.sharing.wrong_keys(guest.managed.guest).size == 0
            usage, (_, cost) = guest.managed.guest.usage(), full_count(self.machine, guest.vmm.pmap)
            assert usage.shared_cost == pytest.approx(cost)

    def close(self) -> None:
        for number in list(self.guests):
            self.power_off(number)
        self.buffers.close()
        assert self.machine.free_frames == self.machine.frames
