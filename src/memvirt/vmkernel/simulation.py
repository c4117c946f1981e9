# SPDX-License-Identifier: Apache-2.0
"""Policy studies without processors: VMs that are metadata only, thousands of them in one process.

A ``SimulatedGuest`` implements ``GuestMemory`` with a few bytes for each page. Its guest is a
working set: a part of its pages that it touches whenever it runs, and that can be changed at any
time. A part of its pages compresses, a part equals the same pages of other VMs. The VMkernel that
manages it is the real one, so allocation rounds of a host of a tebibyte can be measured, and
questions such as "how many of these VMs fit that host" answered, in seconds.

For large hosts one simulated page may stand for several, a ``granule``: they are touched, taken and
shared together. Every size, also in events and samples, counts pages of 4 KiB all the same.

from memvirt.vmkernel.simulation import Simulation

simulation = Simulation(machine_pages=1 << 18, options=MemoryOptions(), granule=64)
for number in range(10):
    simulation.power_on(VmSettings(f"vm{number}", memory=1 << 16, shares=640), active=0.5)
simulation.run(seconds=60)
print(simulation.kernel.sample().host.state)
"""

from __future__ import annotations

from .admission import VmSettings
from .managed import MAXIMUM_GRANT, Condition, ManagedVm
from .options import MemoryOptions
from .simulated_guest import SimulatedGuest
from .simulated_machine import NoFrames, SimulatedMachine
from .vmkernel import VmKernel

__all__ = ["NoFrames", "SimulatedGuest", "SimulatedMachine", "Simulation"]

_PARTS = 64  # times VMs may wait for frames in one step: with granules, which bring more, fewer
_FEWEST_PARTS = 4


class Simulation:
    """A host of ``machine_pages`` frames under the real VMkernel, with simulated guests.

    One simulated page stands for ``granule`` pages; a VM's memory is a multiple of it. A granule
    has to be small against what is shared out: a few thousand of them in the smallest VM, a few
    hundred in minimum free memory. Raises ValueError for a granule below 1.
    """

    def __init__(
        self, machine_pages: int, options: MemoryOptions, *, seed: int = 1, granule: int = 1
    ) -> None:
        if granule < 1:
            raise ValueError(f"a granule of {granule} pages: it should be at least 1")
        self.machine = SimulatedMachine(machine_pages)
        self.kernel = VmKernel(self.machine, options, seed=seed)
        self.guests: list[SimulatedGuest] = []
        self.granule = granule
        self._parts = max(_PARTS // granule, _FEWEST_PARTS)
        self._managed: list[ManagedVm] = []

    def power_on(
        self,
        settings: VmSettings,
        *,
        active: float,
        compressible: float = 0.0,
        common: float = 0.0,
        overhead: int = 0,
    ) -> SimulatedGuest:
        """Start a VM. Raises AdmissionError, ValueError for memory that is not whole granules."""
        if settings.memory % self.granule:
            raise ValueError(
                f"VM {settings.name}: memory of {settings.memory} pages: it should be a multiple "
                f"of the granule, {self.granule} pages"
            )
        self.kernel.admission.admit(settings, overhead)
        self.kernel.make_room(MAXIMUM_GRANT * self.granule, settings.name)
        vm_id = len(self.guests) + 1
        guest = SimulatedGuest(
            self.machine,
            settings.memory,
            vm_id=vm_id,
            active=active,
            compressible=compressible,
            common=common,
            cache_max=self.kernel.cache_max(settings),
            share_salt=self.kernel.salt(vm_id, settings.group),
            granule=self.granule,
        )
        self.guests.append(guest)
        self._managed.append(self.kernel.power_on(guest, settings, overhead))
        return guest

    def step(self, seconds: float) -> None:
        """All guests touch their working sets, then the VMkernel does ``seconds`` of its work."""
        unsatisfied = self._touch(self._managed)
        for _ in range(self._parts):
            if not unsatisfied:
                break
            for vm in unsatisfied:
                vm.waiting = True
            self.kernel.balance(0)
            unsatisfied = self._touch(unsatisfied)
        for vm in unsatisfied:
            self._guest(vm).waited += 1
        self.kernel.balance(int(seconds * 1e9))

    def _touch(self, vms: list[ManagedVm]) -> list[ManagedVm]:
        """Let VMs run; those that need more frames."""
        left = []
        for vm in vms:
            vm.waiting = False
            if vm.condition is Condition.RUNNING and not self._guest(vm).step():
                left.append(vm)
        return left

    def _guest(self, vm: ManagedVm) -> SimulatedGuest:
        assert isinstance(vm.guest, SimulatedGuest)
        return vm.guest

    def run(self, seconds: float, step: float = 1.0) -> None:
        """Steps of ``step`` seconds until ``seconds`` have passed."""
        for _ in range(round(seconds / step)):
            self.step(step)
