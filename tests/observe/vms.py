# SPDX-License-Identifier: Apache-2.0
"""VMs for the observers: page tables and data written from outside, nothing run."""

from __future__ import annotations

import struct

from memvirt import Machine, VirtualMachine
from memvirt.vmm.content import COMPRESS
from memvirt.vmm.stores.compression_cache import CompressionCache

ROOT = 10 << 12
LONG_MODE = {"cr0": 0x8001_0001, "cr4": 0x20, "efer": 0xD00, "cr3": ROOT}
P, W, U, PS, NX = 1, 2, 4, 0x80, 1 << 63


def write_entry(vm: VirtualMachine, ppn: int, slot: int, entry: int, size: int = 8) -> None:
    kind = "<Q" if size == 8 else "<I"
    vm.vmm.write_physical((ppn << 12) + slot * size, struct.pack(kind, entry))


def set_registers(vm: VirtualMachine, registers: dict[str, int]) -> None:
    for name, value in registers.items():
        vm.processor.set(name, value)


def four_level_vm(machine: Machine | None = None, paging: str = "nested") -> VirtualMachine:
    """gVA 0 is mapped to PPN 20 ("my own data"), by tables in PPN 10 to 13; nothing else is."""
    machine = machine or Machine("64M", scatter_seed=5)
    vm = VirtualMachine(machine, memory="16M", name="mine", paging=paging)
    vm.vmm.contents.set_store(COMPRESS, CompressionCache(machine, vm.vm_id, 64))
    for ppn, target in ((10, 11), (11, 12), (12, 13), (13, 20)):
        write_entry(vm, ppn, 0, target << 12 | P | W)
    vm.vmm.write_physical(20 << 12, b"my own data")
    set_registers(vm, LONG_MODE)
    return vm
