# SPDX-License-Identifier: Apache-2.0
"""One VM of a scenario on its host: waiting to be started, running, or ended."""

from __future__ import annotations

from pathlib import Path

from memvirt.address import PAGE_BYTES
from memvirt.host.remap import Remapper
from memvirt.host.state_directory import StateDirectory
from memvirt.images import image_path
from memvirt.machine.memory import MachineMemory, MachineMemoryExhausted
from memvirt.platform.boot.image import BootError
from memvirt.scenario.scenario import VmOptions, shares_of
from memvirt.vm.virtual_machine import VirtualMachine, VirtualMachineError
from memvirt.vmkernel.admission import AdmissionError, VmSettings
from memvirt.vmkernel.compression import CompressionCache
from memvirt.vmkernel.managed import ManagedVm
from memvirt.vmkernel.swap import SwapFile, SwapSpaceError, WriteBuffers
from memvirt.vmkernel.vmkernel import VmKernel
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.paging.build import most_table_frames

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
        self.settings = VmSettings(
            name=self.name,
            memory=options.memory // PAGE_BYTES,
            shares=shares_of(options),
            reservation=options.reservation // PAGE_BYTES,
            limit=None if options.limit is None else options.limit // PAGE_BYTES,
            group=options.group,
        )
        self.vm: VirtualMachine | None = None
        self.managed: ManagedVm | None = None
        self.swap: SwapFile | None = None
        self.remapper: Remapper | None = None
        self.refusal = ""

    @property
    def live(self) -> bool:
        return self.managed is not None

    @property
    def to_come(self) -> bool:
        return self.vm is None and not self.refusal

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
    ) -> tuple[VirtualMachine, SwapFile]:
        """Make the VM with its swap file and compression cache, and load its image.

        Raises one of REFUSALS, with nothing left behind.
        """
        options = self.options
        vm = VirtualMachine(machine, memory=options.memory, paging=self.paging, name=self.name)
        swap: SwapFile | None = None
        try:
            vm.vmm.share_salt = kernel.salt(vm.vm_id, options.group)
            swap = SwapFile(
                state_directory.swap_file(self.name, vm.vm_id),
                self.settings.swap,
                buffers,
                wait_ns=int(kernel.options.swap_read_us * 1000),
            )
            vm.vmm.backing = swap
            if cache := kernel.cache_max(self.settings):
                vm.vmm.compressed = CompressionCache(
                    machine,
                    vm.vm_id,
                    cache,
                    codec=kernel.options.mem_zip_codec,
                    wait_ns=int(kernel.options.unzip_us * 1000),
                )
            image, initrd = self._files()
            vm.load(image, append=options.append, initrd=initrd or b"")
        except BaseException:
            vm.power_off()
            if swap is not None:
                swap.close()
            raise
        vm.vmm.reserve.give_back(0)
        vm.vmm.reserve.managed = True
        self.vm, self.swap = vm, swap
        return vm, swap
