# SPDX-License-Identifier: Apache-2.0
"""One VM of a scenario on its host: waiting to be started, running, or ended."""

from __future__ import annotations

from pathlib import Path

from memvirt.address import PAGE_BYTES
from memvirt.host.remap import Remapper
from memvirt.host.state_directory import StateDirectory
from memvirt.host.stores import StoreRequest, close_stores, make_stores
from memvirt.images import image_path
from memvirt.machine.memory import MachineMemory, MachineMemoryExhausted
from memvirt.platform.boot.image import BootError
from memvirt.scenario.keys import VmOptions
from memvirt.scenario.vm_settings import vm_settings
from memvirt.vm.virtual_machine import VirtualMachine, VirtualMachineError
from memvirt.vmkernel.admission import AdmissionError
from memvirt.vmkernel.managed import ManagedVm
from memvirt.vmkernel.vmkernel import VmKernel
from memvirt.vmm.content import SWAP
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.paging.build import most_table_frames
from memvirt.vmm.stores.backing import BackingStore
from memvirt.vmm.stores.swap_file import SwapFile, SwapSpaceError, WriteBuffers

# Why a VM may not be started, without harm to the others.
REFUSALS = (
    AdmissionError,
    MachineMemoryExhausted,
    SwapSpaceError,
    BootError,
    VirtualMachineError,
    OSError,
)
_LOADER_FRAMES = 256  # tables and structures beside the image itself


def overhead_frames(pages: int, paging: PagingMode) -> int:
    """Most frames that the page tables of a VM of ``pages`` pages take, and a small reserve."""
    return most_table_frames(paging, pages) + 64


class HostedVm:
    """One VM of the scenario: waiting to be started, running, or ended."""

    def __init__(self, options: VmOptions, number: int, position: int) -> None:
        self.options = options
        self.position = position
        self.name = options.name if options.count == 1 else f"{options.name}-{number + 1}"
        self.start_ns = int(options.start * 1e9)
        self.paging = PagingMode[options.paging.upper()]
        self.settings = vm_settings(options, self.name)
        self.vm: VirtualMachine | None = None
        self.managed: ManagedVm | None = None
        self.stores: dict[str, BackingStore] = {}
        self.remapper: Remapper | None = None
        self.refusal = ""
        self._listens = False

    @property
    def swap(self) -> SwapFile | None:
        """Its swap file, while it has one."""
        store = self.stores.get(SWAP)
        return store if isinstance(store, SwapFile) else None

    @property
    def live(self) -> bool:
        return self.managed is not None

    @property
    def to_come(self) -> bool:
        return self.vm is None and not self.refusal

    def listen(self) -> None:
        """Let the guest, once it runs, wait for what is typed when it halts for good."""
        self._listens = True
        if self.vm is not None:
            self.vm.wakes_on_input = True

    def _files(self) -> tuple[Path, Path | None]:
        options = self.options
        return image_path(options.image), None if options.initrd is None else Path(options.initrd)

    def frames_to_load(self) -> int:
        """Frames that loading the VM's image takes."""
        files = [file for file in self._files() if file is not None and file.exists()]
        return sum(file.stat().st_size for file in files) // PAGE_BYTES + _LOADER_FRAMES

    def build(
        self,
        machine: MachineMemory,
        kernel: VmKernel,
        state_directory: StateDirectory,
        buffers: WriteBuffers,
    ) -> VirtualMachine:
        """Make the VM with its backing stores, and load its image.

        Raises one of REFUSALS, with nothing left behind.
        """
        options = self.options
        vm = VirtualMachine(machine, memory=options.memory, paging=self.paging, name=self.name)
        stores: dict[str, BackingStore] = {}
        try:
            vm.vmm.share_salt = kernel.salt(vm.vm_id, options.group)
            request = StoreRequest(
                machine=machine,
                vm_id=vm.vm_id,
                settings=self.settings,
                options=kernel.options,
                cache_max=kernel.cache_max(self.settings),
                swap_path=state_directory.swap_file(self.name, vm.vm_id),
                buffers=buffers,
            )
            stores = make_stores(request, kernel.options.reclaim)
            vm.vmm.contents.set_store(SWAP, None)  # not the one of a VM on its own
            for name, store in stores.items():
                vm.vmm.contents.set_store(name, store)
            image, initrd = self._files()
            vm.load(image, append=options.append, initrd=initrd or b"")
        except BaseException:
            vm.power_off()
            close_stores(stores)
            raise
        vm.vmm.reserve.give_back(0)
        vm.vmm.reserve.managed = True
        vm.wakes_on_input = self._listens
        self.vm, self.stores = vm, stores
        return vm

    def close_stores(self) -> None:
        """Close its backing stores, after the VM is off."""
        close_stores(self.stores)
        self.stores = {}
