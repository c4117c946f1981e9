# SPDX-License-Identifier: Apache-2.0
"""What is to be managed: the host's memory, the VMs and how each is found, and what may be done."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memvirt.live.discovery import DiscoveredVm, UnixAddress
from memvirt.live.working_set_way import WorkingSetWay
from memvirt.vmkernel.admission import VmSettings
from memvirt.vmkernel.options import MemoryOptions


@dataclass(frozen=True, slots=True)
class VmSelector:
    """How one VM is found among the QEMU processes of this host; all that is given must fit.

    Without anything the VM's own name is its name.
    """

    name: str
    qmp: str = ""  # path of its QMP socket
    domain: str = ""  # of libvirt
    command_line: str = ""  # regular expression, searched in the arguments joined by blanks

    def fits(self, vm: DiscoveredVm) -> bool:
        """True if ``vm`` is the one."""
        if not (self.qmp or self.domain or self.command_line):
            return self.name in (vm.name, vm.domain)
        if self.qmp and not any(
            isinstance(address, UnixAddress)
            and Path(address.path).resolve() == Path(self.qmp).resolve()
            for address in vm.monitors
        ):
            return False
        if self.domain and self.domain != vm.domain:
            return False
        return not self.command_line or bool(re.search(self.command_line, arguments_of(vm)))

    def __str__(self) -> str:
        given = {"QMP socket": self.qmp, "domain": self.domain, "command line": self.command_line}
        return ", ".join(f"{what} {value}" for what, value in given.items() if value) or "its name"


def arguments_of(vm: DiscoveredVm) -> str:
    """The arguments of a QEMU process after the program's name, joined by blanks."""
    words = []
    for option, value in vm.command_line.options:
        words += [f"-{option}"] if option else []
        words += [value] if value else []
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class VmPlan:
    """One VM: how it is found, and what it is granted (amounts are pages)."""

    selector: VmSelector
    settings: VmSettings
    cgroup: str = ""  # its control group: protects its reservation, and is a lever

    @property
    def name(self) -> str:
        return self.settings.name


@dataclass(frozen=True, slots=True)
class HostPlan:
    """Everything ``memvirt manage`` was told. Amounts are pages, times seconds."""

    memory: int  # that the VMs may have together, QEMU's own included
    vms: Sequence[VmPlan]
    options: MemoryOptions = field(default_factory=MemoryOptions)
    seed: int = 1
    interval: float = 1.0  # between two quiescent points
    cgroup: str = ""  # whose limit bounds the memory, too
    balloon: bool = True  # whether the balloon may be used
    pageout: bool = True  # whether pages may be sent to the host's swap
    group_reclaim: bool = True  # whether pages may be taken through VMs' control groups
    ksm: bool = False  # whether KSM may be switched on
    block: bool = False  # whether a VM above its target is stopped in state low
    working_set: WorkingSetWay = WorkingSetWay.AUTO
    scan_share: float = 0.02  # of a processor, for looking at all pages
    balloon_patience: float = 15.0  # without progress, until a balloon has stopped short
    balloon_retry: float = 120.0  # until a balloon that stopped short is tried again

    @property
    def evicts(self) -> bool:
        """True if pages may go to the host's swap in any way."""
        return self.pageout or (self.group_reclaim and any(vm.cgroup for vm in self.vms))


def admit_all(plan: HostPlan, min_free: int) -> None:
    """Raise ValueError if the reservations of all VMs together cannot be had."""
    reserved = sum(vm.settings.reservation for vm in plan.vms)
    if reserved > plan.memory - min_free:
        raise ValueError(
            f"the VMs' reservations are {reserved} pages, but of {plan.memory} pages of memory "
            f"{min_free} are to stay free"
        )
