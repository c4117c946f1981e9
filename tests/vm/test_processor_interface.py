# SPDX-License-Identifier: Apache-2.0
"""A VM runs on anything that keeps the Processor protocol: here, on a list of memory accesses."""

from __future__ import annotations

from typing import Any

import pytest

from memvirt import EndReason, Machine, PagingMode, VirtualMachine
from memvirt.cpu.processor import (
    ExitReason,
    Processor,
    ProcessorExit,
    ProcessorStatistics,
    SegmentState,
)
from memvirt.mmu.access import FLUSH_AND_RETRY, NEED_FRAMES, NEED_PAGE, OK, READ, WRITE
from memvirt.vmm.check import check_machine
from memvirt.vmm.monitor import VirtualMachineMonitor
from memvirt.vmm.translate import access, note_flush

Access = tuple[int, int]  # gVA (physical: paging is off), byte to store or -1 to load


class AccessList:
    """A processor whose whole program is a list of accesses, one nanosecond each."""

    def __init__(self, vmm: VirtualMachineMonitor, program: list[Access]) -> None:
        self.vmm = vmm
        self.program = program
        self.loaded: list[int] = []
        self._registers = dict.fromkeys(("rip", "rflags"), 0)
        self._done = 0
        self._end = 0
        self._stop = False
        vmm.state.mmu.cr0 = 1

    def run(self) -> ProcessorExit:
        if self.vmm.take_stale().flush:
            note_flush(self.vmm.state)
        while self._done < len(self.program):
            if self._stop:
                return ProcessorExit(ExitReason.STOP_REQUESTED)
            if self.virtual_ns >= self._end:
                return ProcessorExit(ExitReason.QUANTUM_END)
            left = self._step(*self.program[self._done])
            if left is not None:
                return left
        return ProcessorExit(ExitReason.HALTED)

    def _step(self, gva: int, value: int) -> ProcessorExit | None:
        state = self.vmm.state
        status = access(state, gva, READ if value < 0 else WRITE)
        if status == NEED_FRAMES:
            return ProcessorExit(ExitReason.NEED_FRAMES)
        if status == NEED_PAGE:
            write = bool(state.exit_write)
            return ProcessorExit(ExitReason.NEED_PAGE, ppn=int(state.exit_ppn), write=write)
        if status == FLUSH_AND_RETRY:
            note_flush(state)
            return None
        assert status == OK
        content, at = self.vmm.machine.content, int(state.mmu.out_machine_address)
        if value < 0:
            self.loaded.append(int(content[at]))
        else:
            content[at] = value
        self._done += 1
        return None

    def set_quantum(self, nanoseconds: int) -> None:
        self._end = self.virtual_ns + nanoseconds

    def end_quantum(self) -> None: ...

    @property
    def virtual_ns(self) -> int:
        return self._done + int(self.vmm.state.stall_ns)

    halted_ns = 0
    privilege_level = 0
    debugging = None
    in_64_bit_code = False
    interrupts_enabled = False

    def request_stop(self) -> None:
        self._stop = True

    def get(self, name: str) -> int:
        return self._registers[name]

    def set(self, name: str, value: int) -> None:
        self._registers[name] = value

    def segment(self, name: str) -> SegmentState:
        return SegmentState(0, 0, 0, 0)

    def set_segment(self, name: str, state: SegmentState) -> None: ...

    def set_mode(self, *, long_mode: bool, code64: bool, protected: bool = True) -> None: ...

    def statistics(self) -> ProcessorStatistics:
        raise NotImplementedError

    def close(self) -> None: ...


@pytest.mark.parametrize("paging", [PagingMode.SHADOW, PagingMode.NESTED])
def test_a_processor_of_another_kind(paging: PagingMode) -> None:
    """Demand allocation, eviction, bringing back: the VMM asks nothing else of a processor."""
    pages = 600
    program = [(ppn << 12 | 5, ppn & 0xFF) for ppn in range(pages)]
    program += [(ppn << 12 | 5, -1) for ppn in range(pages)]
    machine = Machine("16M", scatter_seed=2)

    def make(vmm: VirtualMachineMonitor, pc: Any) -> Processor:
        return AccessList(vmm, program)

    with VirtualMachine(machine, memory="4M", paging=paging, processor=make) as vm:
        quanta = 0
        while vm.run_quantum(100) is None:
            quanta += 1
            vm.vmm.unmap(range(0, 1024, 3))
            assert check_machine(machine, [vm.vmm]) == []
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.HALTED
        assert quanta >= 2 * pages // 100 - 1
        assert isinstance(vm.processor, AccessList)
        assert vm.processor.loaded == [ppn & 0xFF for ppn in range(pages)]
        assert vm.vmm.statistics().brought_back > 0


def test_a_stop_is_an_outcome() -> None:
    def make(vmm: VirtualMachineMonitor, pc: Any) -> Processor:
        return AccessList(vmm, [(0, 1)] * 1000)

    with VirtualMachine(Machine("16M"), memory="4M", processor=make) as vm:
        vm.processor.request_stop()
        outcome = vm.run(timeout=120)
        assert outcome.reason is EndReason.STOPPED
