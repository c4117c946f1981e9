# SPDX-License-Identifier: Apache-2.0
"""The same guest without virtualization, in shadow and in nested mode must end alike: the same
serial output, the same memory to the last bit, the same architectural faults."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pytest

from memvirt import EndReason, Machine, PagingMode, VirtualMachine
from memvirt.images import image_path
from memvirt.platform.boot.protocol import Protocol
from memvirt.vmm.check import check_machine


@dataclass(frozen=True)
class Ending:
    """What must not depend on the paging mode."""

    reason: EndReason
    serial: bytes
    exceptions: dict[int, int]
    memory: str


def run(
    image: str, append: str, paging: PagingMode, *, protocol: Protocol = Protocol.AUTO
) -> Ending:
    machine = Machine("96M", scatter_seed=None if paging is PagingMode.FLAT else 7)
    with VirtualMachine(machine, memory="64M", paging=paging) as vm:
        vm.load(image_path(image), append=append, protocol=protocol)
        outcome = vm.run(timeout=120)
        digest = hashlib.sha256()
        for ppn in range(vm.vmm.pmap.pages):
            digest.update(vm.vmm.read_page(ppn))
        if paging is not PagingMode.FLAT:
            assert check_machine(machine, [vm.vmm]) == []
        counts = vm.processor.statistics().exceptions_by_vector
        ending = Ending(outcome.reason, bytes(vm.serial_log), counts, digest.hexdigest())
    assert machine.free_frames == machine.frames
    return ending


@pytest.mark.parametrize("workload", ["faults", "selfmod", "churn", "fill", "identical"])
def test_every_mode_ends_alike(workload: str) -> None:
    # Without the balloon: where a process is preempted (its registers then lie on a stack) differs
    # by a few instructions between the modes, and the driver's polls move the ticks off idle time.
    append = f"workload={workload} balloon=0"
    flat = run("bundled", append, PagingMode.FLAT)
    assert flat.reason is EndReason.SUCCESS
    assert b"verdict: success" in flat.serial
    assert flat.exceptions
    for paging in (PagingMode.SHADOW, PagingMode.NESTED):
        assert run("bundled", append, paging) == flat


@pytest.mark.parametrize("workload", ["processes", "random", "idle"])
def test_modes_agree_where_the_timer_decides(workload: str) -> None:
    """Timer interrupts fall elsewhere in each mode, so saved registers in memory may differ."""
    endings = [run("bundled", f"workload={workload}", paging) for paging in PagingMode]
    assert {ending.reason for ending in endings} == {EndReason.SUCCESS}
    assert len({ending.serial for ending in endings}) == 1


def test_from_protected_mode_through_every_paging_mode() -> None:
    """32-bit two-level paging, PAE and long mode, with pages of every size."""
    endings = [run("multiboot32", "", paging) for paging in PagingMode]
    assert endings[0].reason is EndReason.SUCCESS
    assert endings[0].serial.count(b"\n") == 5
    assert endings[1:] == endings[:1] * 2


@pytest.mark.parametrize("paging", [PagingMode.SHADOW, PagingMode.NESTED])
def test_the_64_bit_boot_protocol(paging: PagingMode) -> None:
    ending = run("bundled", "workload=processes", paging, protocol=Protocol.ELF)
    assert ending.reason is EndReason.SUCCESS


@pytest.mark.parametrize("paging", [PagingMode.SHADOW, PagingMode.NESTED])
def test_two_runs_are_the_same_run(paging: PagingMode) -> None:
    """Virtual time makes a run repeatable, interrupts included."""
    first = run("bundled", "workload=processes", paging)
    assert run("bundled", "workload=processes", paging) == first
