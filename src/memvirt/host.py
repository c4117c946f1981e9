# SPDX-License-Identifier: Apache-2.0
"""A whole host: one machine memory, several VMs running in parallel, remapped while they run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from memvirt.images import image_path
from memvirt.scenario import RemapOptions, Scenario, VmOptions
from memvirt.virtual_machine import EndReason, Machine, VirtualMachine
from memvirt.vmm.check import Violation, check_machine, check_vm
from memvirt.vmm.monitor import VirtualMachineMonitor
from memvirt.vmm.pmap import PageState

_CHECK_EVERY = 16  # remappings between two runs of the consistency checker


class Remapper:
    """Moves, unmaps and shares pages of one VM at intervals of virtual time.

    The choice depends on the options and the VM's number only, so a scenario can be repeated.
    """

    def __init__(self, vm: VirtualMachine, options: RemapOptions, number: int) -> None:
        self._vm = vm
        self._options = options
        self._random = np.random.default_rng((options.seed, number))
        self._next_ns = int(options.every_ms * 1e6)
        self.rounds = 0

    def __call__(self) -> bool:
        """Called between quanta; True if pages were remapped."""
        options = self._options
        if self._vm.virtual_ns < self._next_ns or not (
            options.move or options.unmap or options.share
        ):
            return False
        self._next_ns = self._vm.virtual_ns + int(options.every_ms * 1e6)
        vmm = self._vm.vmm
        pages = self._random.permutation(vmm.pmap.pages)
        moved = int(pages.size * options.move)
        # Moving takes new frames before it gives up the old: never more than are free.
        vmm.move(pages[: min(moved, vmm.machine.free_frames // 4)])
        vmm.unmap(pages[moved : moved + int(pages.size * options.unmap)])
        if options.share:
            share_equal_pages(vmm, self._random.permutation(vmm.pmap.pages)[:512])
        self.rounds += 1
        return True


def share_equal_pages(vmm: VirtualMachineMonitor, ppns: Any) -> int:
    """Share pages of equal content among ``ppns`` of one VM; returns how many frames it saved."""
    first: dict[bytes, int] = {}
    saved = 0
    for ppn in ppns[vmm.pmap.state[ppns] == PageState.PRIVATE].tolist():
        content = vmm.read_page(ppn)
        other = first.setdefault(content, ppn)
        if other == ppn or vmm.pmap.state[ppn] != PageState.PRIVATE:
            continue
        if vmm.pmap.state[other] == PageState.PRIVATE:
            vmm.make_shared(other)
        saved += vmm.share(ppn, int(vmm.pmap.frame[other]))
    return saved


class Host:
    """The host of a scenario. Use as a context manager; leaving it powers everything off."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.machine = Machine(scenario.machine.memory, scatter_seed=scenario.machine.scatter_seed)
        self.vms: list[VirtualMachine] = []
        self.violations: list[Violation] = []
        self._lock = threading.Lock()
        try:
            for options in scenario.vm:
                for number in range(options.count):
                    self._add(options, number)
        except BaseException:
            self.power_off()
            raise

    def _add(self, options: VmOptions, number: int) -> None:
        name = options.name if options.count == 1 else f"{options.name}-{number + 1}"
        vm = VirtualMachine(self.machine, memory=options.memory, paging=options.paging, name=name)
        self.vms.append(vm)
        initrd = b"" if options.initrd is None else options.initrd
        vm.load(image_path(options.image), append=options.append, initrd=initrd)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exception: object) -> None:
        self.power_off()

    def run(self, on_tick: Callable[[], object] | None = None, tick: float = 0.25) -> bool:
        """Run every VM to its end, in parallel; True if all verified their memory.

        ``on_tick`` is called about every ``tick`` seconds of host time in the calling thread.
        """
        deadline = time.monotonic() + self.scenario.timeout
        with ThreadPoolExecutor(max_workers=len(self.vms), thread_name_prefix="vm") as pool:
            futures = [
                pool.submit(self._run_vm, vm, number, deadline)
                for number, vm in enumerate(self.vms)
            ]
            try:
                while not all(future.done() for future in futures):
                    time.sleep(tick)
                    if on_tick is not None:
                        on_tick()
            except BaseException:
                for vm in self.vms:
                    vm.processor.request_stop()
                raise
            for future in futures:
                future.result()
        if self.scenario.check:
            self.violations += check_machine(self.machine, [vm.vmm for vm in self.vms])
        return self.succeeded

    def _run_vm(self, vm: VirtualMachine, number: int, deadline: float) -> None:
        remapper = Remapper(vm, self.scenario.remap, number)

        def between_quanta(vm: VirtualMachine) -> None:
            if remapper() and self.scenario.check and remapper.rounds % _CHECK_EVERY == 0:
                found = check_vm(vm.vmm)
                with self._lock:
                    self.violations += found

        vm.run(timeout=max(deadline - time.monotonic(), 0.001), on_quantum=between_quanta)

    @property
    def succeeded(self) -> bool:
        """True if every guest has reported success and no invariant was broken."""
        ends = [vm.outcome.reason if vm.outcome else None for vm in self.vms]
        return all(end is EndReason.SUCCESS for end in ends) and not self.violations

    def power_off(self) -> None:
        """Stop all VMs and give their frames back."""
        for vm in self.vms:
            vm.power_off()
