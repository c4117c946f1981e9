# SPDX-License-Identifier: Apache-2.0
"""A VM that is powered off, or was never built, holds nothing and refuses what it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from memvirt import Machine, PagingMode, VirtualMachine
from memvirt.cpu.processor import ProcessorError, SegmentState
from memvirt.images import image_path
from memvirt.names import UnknownName
from memvirt.vm.virtual_machine import VirtualMachineError

MODES = [PagingMode.SHADOW, PagingMode.NESTED]


@pytest.mark.parametrize("paging", MODES)
def test_running_after_power_off(paging: PagingMode) -> None:
    machine = Machine("64M")
    vm = VirtualMachine(machine, memory="16M", paging=paging, name="gone")
    vm.load(image_path("bundled"), append="workload=fill")
    vm.run_quantum(1_000_000)
    vm.power_off()
    vm.power_off()
    with pytest.raises(VirtualMachineError, match="gone is powered off"):
        vm.run_quantum(1_000_000)
    assert machine.free_frames == machine.frames


@pytest.mark.parametrize(
    "use",
    [
        lambda processor: processor.run(),
        lambda processor: processor.get("rip"),
        lambda processor: processor.get("rflags"),
        lambda processor: processor.set("rax", 1),
        lambda processor: processor.segment("cs"),
        lambda processor: processor.set_segment("cs", SegmentState(8, 0, 0, 0)),
        lambda processor: processor.set_mode(long_mode=False, code64=False),
        lambda processor: processor.privilege_level,
        lambda processor: processor.in_64_bit_code,
        lambda processor: processor.interrupts_enabled,
    ],
)
def test_a_closed_processor_refuses(use: Callable[[Any], object]) -> None:
    """Its engine's memory is gone: what read or wrote it would crash the whole process."""
    vm = VirtualMachine(Machine("64M"), memory="16M")
    processor = vm.processor
    vm.power_off()
    with pytest.raises(ProcessorError, match="powered off"):
        use(processor)


def test_statistics_outlive_the_processor() -> None:
    vm = VirtualMachine(Machine("64M"), memory="16M")
    vm.load(image_path("bundled"), append="workload=fill")
    vm.run_quantum(1_000_000)
    before = vm.processor.statistics()
    vm.power_off()
    assert vm.processor.statistics() == before
    assert vm.virtual_ns == before.virtual_ns > 0


def test_a_processor_that_cannot_be_made_costs_no_frames() -> None:
    def refuse(vmm: object, pc: object) -> Any:
        raise ProcessorError("no such engine")

    machine = Machine("64M")
    with pytest.raises(ProcessorError, match="no such engine"):
        VirtualMachine(machine, memory="16M", processor=refuse)
    assert machine.free_frames == machine.frames


def test_an_unknown_register_is_one_clear_error() -> None:
    with VirtualMachine(Machine("64M"), memory="16M") as vm:
        with pytest.raises(UnknownName, match=r"no register 'eip'; .*there are: rax, "):
            vm.processor.get("eip")
        with pytest.raises(UnknownName, match=r"no segment register 'xs'; .*there are: es, cs, "):
            vm.processor.segment("xs")
