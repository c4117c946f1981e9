# SPDX-License-Identifier: Apache-2.0
"""A whole host: one machine memory, the VMkernel, and several VMs that run in rounds.

In a round each VM runs a quantum of virtual time, in parallel; then all processors stand still and
the VMkernel does its work. A VM that runs out of frames in the middle of its quantum waits for the
others, gets frames, and goes on with the same quantum. Between two quiescent points a VM touches
only what is its own, so the outcome of a scenario depends on the scenario alone.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from memvirt.address import PAGE_BYTES
from memvirt.host.audit import check_one, unnoticed_writes
from memvirt.host.hosted_vm import REFUSALS, HostedVm, overhead_frames
from memvirt.host.machine_frames import HostFrames
from memvirt.host.quantum import HostInterrupted, QuantumRunner
from memvirt.host.remap import Remapper
from memvirt.host.state_directory import StateDirectory
from memvirt.host.throttle import HostTime, Throttle
from memvirt.host.vm_control import UnknownVm, VmControl
from memvirt.host.vmm_memory import VmmMemory
from memvirt.machine.machine import Machine
from memvirt.scenario.scenario import Scenario
from memvirt.size import format_size
from memvirt.vm.outcome import EndReason
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmkernel.events import EventLog
from memvirt.vmkernel.managed import Condition
from memvirt.vmkernel.samples import Sample
from memvirt.vmkernel.vmkernel import VmKernel
from memvirt.vmm.check import Violation, check_machine
from memvirt.vmm.memory_statistics import MemoryStatistics
from memvirt.vmm.stores.swap_file import WriteBuffers

__all__ = ["Host", "HostInterrupted", "HostTime"]

CHECK_EVERY = 32  # quiescent points between two runs of the consistency checker
_PARTS = 16  # times a VM may wait for frames in one quantum
_STUCK_ROUNDS = 200  # rounds in which no VM could run, and nothing is wrong with swap
_WAIT_SECONDS = 0.02  # until a host whose VMs all wait for a disk, or for somebody, looks again
_WRITE_BUFFERS = (32, 1024)  # frames: 1/128 of machine memory, within these bounds


class Host:
    """The host of a scenario. Use as a context manager; leaving it powers everything off.

    ``run`` runs it to its end, ``step`` one round. If the scenario has ``check``, the consistency
    checker runs at each ``check_every``-th quiescent point and at the end. Raises AdmissionError if
    a VM that is to start at once cannot be admitted, UnknownPolicy, and the errors of images, swap
    files and the state directory.
    """

    def __init__(self, scenario: Scenario, *, check_every: int = CHECK_EVERY) -> None:
        self.scenario = scenario
        self._check_every = check_every
        self._quiescent_points = 0
        self.violations: list[Violation] = []
        self.errors: list[str] = []  # tracebacks of errors inside memvirt, each of which ended a VM
        self.rounds = 0
        self._stuck = 0
        self._checked_at_end = False
        self._wait: Callable[[float], object] = time.sleep
        self._final: dict[int, MemoryStatistics] = {}
        self._entries: list[HostedVm] = []
        for options in scenario.vm:
            for number in range(options.count):
                self._entries.append(HostedVm(options, number, len(self._entries)))
        machine = scenario.machine
        self.machine = Machine(machine.memory, scatter_seed=machine.scatter_seed)
        low, high = _WRITE_BUFFERS
        buffers = min(max(self.machine.frames // 128, low), high, self.machine.frames // 8)
        directory = None if machine.state_directory is None else Path(machine.state_directory)
        self.state_directory = StateDirectory(directory)
        self._buffers = WriteBuffers(self.machine, max(buffers, 1))
        self._runner = QuantumRunner(len(self._entries), self._end_broken)
        try:
            self.kernel = VmKernel(
                HostFrames(self.machine),
                machine.Mem,
                seed=scenario.seed,
                swap_pages=None if machine.swap is None else machine.swap // PAGE_BYTES,
                own_frames=self._buffers.count,
            )
        except BaseException:
            self._buffers.close()
            self.state_directory.close()
            raise
        self._quantum_ns = int(machine.quantum_ms * 1e6)
        self._throttle = Throttle(self.kernel, self._quantum_ns)
        try:
            self._start_due(refusals_end_it=True)
        except BaseException:
            self.power_off()
            raise

    def __repr__(self) -> str:
        free = format_size(self.machine.free_frames * PAGE_BYTES)
        return (
            f"<Host: {format_size(self.machine.bytes)} of machine memory, {free} free, "
            f"{len(self.vms)} VMs started of {len(self._entries)}, {self.rounds} rounds>"
        )

    def _repr_html_(self) -> str:
        return self.kernel.sample()._repr_html_()

    @property
    def vms(self) -> list[VirtualMachine]:
        """The VMs that have been started, in the scenario's order."""
        return [entry.vm for entry in self._entries if entry.vm is not None]

    def final_statistics(self, vm: VirtualMachine) -> MemoryStatistics:
        """Statistics of a VM: those of its last moment, if it is off."""
        return self._final.get(vm.vm_id) or vm.vmm.statistics()

    def host_time(self, vm: VirtualMachine) -> HostTime:
        """What running a VM has cost so far, and whether it was throttled for that."""
        return self._throttle.host_time(vm)

    @property
    def refusals(self) -> list[str]:
        """Why VMs could not be started."""
        return [entry.refusal for entry in self._entries if entry.refusal]

    @property
    def events(self) -> EventLog:
        """Decisions of the VMkernel, each with its reason."""
        return self.kernel.events

    def sample(self) -> Sample:
        """What the VMkernel knows now. Call it from ``on_tick`` or while nothing runs."""
        return self.kernel.sample()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exception: object) -> None:
        self.power_off()

    # Power -------------------------------------------------------------------------------------

    def _start_due(self, *, refusals_end_it: bool = False) -> None:
        for entry in self._entries:
            if not entry.to_come or entry.start_ns > self.kernel.time_ns:
                continue
            try:
                self._power_on(entry)
            except REFUSALS as error:
                if refusals_end_it:
                    raise
                entry.refusal = f"VM {entry.name} was not started: {error}"

    def _resize_due(self) -> None:
        """Change machine memory as the scenario says. What cannot be had yet is asked for again."""
        due = [r for r in self.scenario.machine.resize if r.at * 1e9 <= self.kernel.time_ns]
        if not due:
            return
        wanted = max(self.machine.frames - due[-1].memory // PAGE_BYTES, 0)
        if wanted < self.kernel.withdrawn:
            self.kernel.give_memory_back()
        if wanted > self.kernel.withdrawn:
            self.kernel.withdraw(wanted - self.kernel.withdrawn)

    def _power_on(self, entry: HostedVm) -> None:
        settings, kernel = entry.settings, self.kernel
        overhead = overhead_frames(settings.memory, entry.paging)
        kernel.admission.admit(settings, overhead)
        try:
            kernel.make_room(entry.frames_to_load(), f"loading {entry.name}")
            vm = entry.build(self.machine, kernel, self.state_directory, self._buffers)
        except BaseException:
            kernel.admission.leave(settings, overhead)
            raise
        guest = VmmMemory(vm.vmm, swap=entry.swap, balloon=vm.balloon)
        entry.managed = kernel.power_on(guest, settings, overhead)
        entry.remapper = Remapper(vm, self.scenario.remap, entry.position)

    def _power_off(self, entry: HostedVm) -> None:
        if entry.managed is not None:
            self.kernel.power_off(entry.managed)
            entry.managed = None
        if entry.vm is not None:
            self._final.setdefault(entry.vm.vm_id, entry.vm.vmm.statistics())
            entry.vm.power_off()
        entry.close_stores()

    def power_off(self) -> None:
        """Stop all VMs and give their frames back; swap files and the state directory go."""
        for entry in self._entries:
            self._power_off(entry)
        self._runner.close()
        self.kernel.give_memory_back()
        self._buffers.close()
        self.state_directory.close()

    def control(self, name: str) -> VmControl:
        """What may be changed of the running VM ``name`` between two rounds. Raises UnknownVm."""
        for entry in self._live():
            if entry.name == name:
                return VmControl(entry, self.kernel)
        running = ", ".join(entry.name for entry in self._live()) or "none"
        raise UnknownVm(f'no VM "{name}" is running; running are: {running}')

    def listen(self) -> None:
        """From now on guests that halt for good wait for what is typed on their consoles."""
        for entry in self._entries:
            entry.listen()

    # Running -----------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """True as long as a VM is on, or to be powered on."""
        return any(entry.live or entry.to_come for entry in self._entries)

    def step(self) -> bool:
        """One round: each VM runs a quantum, then the VMkernel does its work.

        Returns ``running``. Between two steps every processor stands still: look at anything, and
        change what may be changed.
        """
        if self.running:
            self._round()
            self._check_at_end()
        return self.running

    def run(
        self,
        on_tick: Callable[[], object] | None = None,
        tick: float = 0.25,
        *,
        on_sample: Callable[[Sample], object] | None = None,
        sample_interval: float = 0.1,
        interrupted: Callable[[], bool] = lambda: False,
        wait: Callable[[float], object] = time.sleep,
    ) -> bool:
        """Run every VM to its end; True if all verified their memory.

        ``interrupted`` is asked at each quiescent point, and now and then while quanta run, which
        it ends early; HostInterrupted is raised once it says so.
        ``wait`` waits for so many seconds of host time when no VM can run, or less if it is
        interrupted.
        ``on_tick`` is called about every ``tick`` seconds of host time, ``on_sample`` every
        ``sample_interval`` seconds of virtual time and once at the end, both while every
        processor is stopped.
        """
        deadline = time.monotonic() + self.scenario.timeout
        next_tick = time.monotonic()
        next_sample = 0
        self._wait = wait
        while self.running:
            if interrupted():
                raise HostInterrupted
            if on_sample is not None and self.kernel.time_ns >= next_sample:
                next_sample = self.kernel.time_ns + int(sample_interval * 1e9)
                on_sample(self.sample())
            if on_tick is not None and time.monotonic() >= next_tick:
                next_tick = time.monotonic() + tick
                on_tick()
            with self._runner.hurried(lambda: interrupted() or time.monotonic() >= deadline):
                self.step()
            if time.monotonic() >= deadline:
                self._end_all(EndReason.TIMEOUT, f"no verdict in {self.scenario.timeout:g} s")
        if on_sample is not None:
            on_sample(self.sample())
        self._check_at_end()
        return self.succeeded

    def _round(self) -> None:
        self.rounds += 1
        self._resize_due()
        self._start_due()
        self._throttle.begin_round(self._entries)
        runnable = [entry for entry in self._live() if self._may_run(entry)]
        self._runner.run(_vms(runnable), self._throttle.run)
        for _ in range(_PARTS):
            waiting = [entry for entry in self._live() if entry.vm and entry.vm.waiting]
            if not waiting:
                break
            self._balance(0)
            able = [entry for entry in waiting if self._may_run(entry)]
            if not self._runner.run(_vms(able), self._throttle.go_on):
                break
        self._throttle.end_round(self._entries)
        ran = [entry for entry in runnable if entry.vm and not entry.vm.paused]
        # Time stands still for a host whose VMs all wait for a disk.
        stands = not ran and any(entry.vm and entry.vm.paused for entry in runnable)
        self._balance(0 if stands else self._quantum_ns)
        for entry in self._live():
            if entry.remapper is not None:
                self._guarded(entry, entry.remapper)
            if entry.vm is not None and entry.vm.outcome is not None:
                self._power_off(entry)
        self._watch_progress(len(ran))

    def _live(self) -> list[HostedVm]:
        return [entry for entry in self._entries if entry.live]

    def _may_run(self, entry: HostedVm) -> bool:
        assert entry.managed is not None
        assert entry.vm is not None
        if entry.managed.held or entry.managed.throttled:
            return False
        return entry.managed.condition is Condition.RUNNING or bool(entry.vm.paused)

    def _guarded(self, entry: HostedVm, step: Callable[[], object]) -> bool:
        """Do something for one VM; an error in it ends that VM, and the others go on."""
        assert entry.vm is not None
        try:
            step()
        except Exception as error:
            self._end_broken(entry.vm, error)
            return False
        return True

    def _end_broken(self, vm: VirtualMachine, error: Exception) -> None:
        """End a VM in whose work memvirt failed: what guests and disks cause is no exception."""
        if vm.outcome is None:
            self.errors.append("".join(traceback.format_exception(error)))
        vm.stop(EndReason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")

    def _balance(self, elapsed_ns: int) -> None:
        for entry in self._live():
            assert entry.vm is not None
            assert entry.managed is not None
            entry.managed.waiting = entry.vm.waiting
            if entry.managed.held or entry.managed.throttled:
                continue
            if entry.vm.paused:
                self.kernel.pause(entry.managed, entry.vm.paused)
            elif entry.managed.condition is Condition.PAUSED and not entry.vm.waiting:
                self.kernel.resume(entry.managed)
        self.kernel.balance(elapsed_ns)
        self._quiescent_points += 1
        if self.scenario.check and self._quiescent_points % self._check_every == 0:
            self._check()

    def _watch_progress(self, ran: int) -> None:
        """A host on which nothing can run waits for help if swap fails, else gives up."""
        live = [entry.managed for entry in self._live() if entry.managed]
        if ran or not live or any(managed.throttled for managed in live):
            self._stuck = 0
            return
        if any(managed.held for managed in live):
            self._stuck = 0
            self._wait(_WAIT_SECONDS)
            return
        self._stuck += 1
        troubled = any(
            (entry.swap and entry.swap.error) or (entry.vm and entry.vm.paused)
            for entry in self._live()
        )
        if troubled:
            self._wait(_WAIT_SECONDS)
            for entry in self._live():
                if entry.swap is not None and entry.swap.error is not None:
                    entry.swap.retry()
        elif self._stuck >= _STUCK_ROUNDS:
            self._end_all(EndReason.OUT_OF_MEMORY, "no VM can get the frames it needs to go on")

    def _end_all(self, reason: EndReason, detail: str) -> None:
        for entry in self._entries:
            if entry.live and entry.vm is not None:
                entry.vm.stop(reason, detail)
                self._power_off(entry)
            elif entry.to_come:
                entry.refusal = f"VM {entry.name} was not started: {reason.value}"

    def _check_at_end(self) -> None:
        if self.scenario.check and not self.running and not self._checked_at_end:
            self._checked_at_end = True
            self._check()

    def _check(self) -> None:
        vmms = [entry.vm.vmm for entry in self._live() if entry.vm is not None]
        try:
            self.violations += check_machine(self.machine, vmms)
            self.violations += unnoticed_writes(self.kernel.sharing, self._live())
        except Exception:
            # A checker that cannot bear what a VM has come to: whose, and nobody else's, end.
            found = [self._guarded(entry, partial(check_one, entry)) for entry in self._live()]
            if all(found):
                raise

    @property
    def succeeded(self) -> bool:
        """True if every guest has reported success and no invariant was broken."""
        ends = [vm.outcome.reason if vm.outcome else None for vm in self.vms]
        good = all(end in (EndReason.SUCCESS, EndReason.POWER_OFF) for end in ends)
        return good and not self.refusals and not self.violations


def _vms(entries: list[HostedVm]) -> list[VirtualMachine]:
    return [entry.vm for entry in entries if entry.vm is not None]
