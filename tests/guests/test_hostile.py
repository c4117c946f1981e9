# SPDX-License-Identifier: Apache-2.0
"""A guest that does its worst hurts itself only: the host goes on, its other VMs verify."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from memvirt import EndReason, Machine, VirtualMachine
from memvirt.host.host import Host, HostInterrupted
from memvirt.scenario.scenario import load_scenario
from memvirt.vmm import check
from memvirt.vmm.check import check_machine
from memvirt.vmm.monitor import VirtualMachineMonitor
from tests.small_guest import VIRTUALIZED, assemble, small_guest

# Loads CR3 where no memory is, and goes on in what its translations still allow.
_CR3_BEYOND = """
test:   mov ${cr3:#x}, %rax
        mov %rax, %cr3
1:      jmp 1b
"""
# Without PSE a table of ones points to tables of ones, whose entries map the open bus: a walk that
# never faults, through tables that are nowhere.
_OPEN_BUS_32 = """
        .code32
        .text
header: .long   0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000)
        .long   header, 0x100000, _edata, _end, start
        .globl  start
start:  mov     $0x40000000, %eax
        mov     %eax, %cr3
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
1:      jmp     1b
"""


_BEYOND = (0x4000_0000, 0xFEE0_0000, 0xFF_FFFF_F000)


def _images() -> dict[str, bytes]:
    images = {f"cr3={cr3:#x}": small_guest(_CR3_BEYOND.format(cr3=cr3)) for cr3 in _BEYOND}
    return images | {"open-bus-32": assemble(_OPEN_BUS_32)}


_NAMES = [*(f"cr3={cr3:#x}" for cr3 in _BEYOND), "open-bus-32"]


@pytest.mark.parametrize("paging", VIRTUALIZED)
@pytest.mark.parametrize("name", _NAMES)
def test_the_checker_bears_tables_beyond_memory(name: str, paging: str) -> None:
    machine = Machine("64M", scatter_seed=3)
    with VirtualMachine(machine, memory="4M", paging=paging) as vm:
        vm.load(_images()[name])
        for _ in range(50):
            ended = vm.run_quantum(10_000)
            assert check_machine(machine, [vm.vmm]) == []
            if ended is not None:
                break
        ends = (EndReason.TRIPLE_FAULT, EndReason.ENGINE_ERROR)  # the latter: code on the open bus
        assert vm.outcome is None or vm.outcome.reason in ends


def test_a_host_outlives_its_worst_guests(tmp_path: Path) -> None:
    lines = ["timeout = 60", "[machine]", 'memory = "64M"', "quantum_ms = 1"]
    for number, (name, image) in enumerate(_images().items()):
        path = tmp_path / f"{number}.img"
        path.write_bytes(image)
        lines += [
            "[[vm]]", f'name = "{name}"', 'memory = "4M"', 'paging = "shadow"', f'image = "{path}"'
        ]  # fmt: skip
    lines += [
        "[[vm]]", 'name = "good"', 'memory = "8M"', 'append = "workload=fill passes=3"',
        "[remap]", "every_ms = 2", "move = 0.1", "unmap = 0.2", "share = true",
    ]  # fmt: skip
    scenario = tmp_path / "s.toml"
    scenario.write_text("\n".join(lines))
    with Host(load_scenario(scenario), check_every=1) as host:

        def interrupted() -> bool:
            return all(vm.outcome is not None for vm in host.vms if vm.name == "good")

        with contextlib.suppress(HostInterrupted):  # the guests that never end
            host.run(interrupted=interrupted)
        good = next(vm for vm in host.vms if vm.name == "good")
        assert good.outcome is not None
        assert good.outcome.reason is EndReason.SUCCESS, good.outcome
        assert host.errors == []
        assert host.violations == []


def _broken() -> Iterator[None]:
    raise IndexError("an index of this VM's")
    yield


@pytest.mark.parametrize("where", ["run", "check"])
def test_an_error_that_one_vm_causes_ends_that_vm_only(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is: here an IndexError, in its thread or in the checker."""
    scenario = tmp_path / "s.toml"
    scenario.write_text(
        """timeout = 60
[machine]
memory = "64M"
quantum_ms = 1
[[vm]]
name = "evil"
memory = "4M"
[[vm]]
name = "good"
memory = "8M"
append = "workload=fill passes=2"
"""
    )
    with Host(load_scenario(scenario), check_every=1) as host:
        evil, good = host.vms
        if where == "run":
            monkeypatch.setattr(evil, "_drain_serial", partial(next, _broken()))
        else:
            real = check.check_pages

            def broken(vmm: VirtualMachineMonitor) -> Iterator[check.Violation | None]:
                return _broken() if vmm is evil.vmm else real(vmm)

            monkeypatch.setattr(check, "check_pages", broken)
        assert not host.run()
        assert good.outcome is not None
        assert good.outcome.reason is EndReason.SUCCESS
        assert evil.outcome is not None
        assert evil.outcome.reason is EndReason.INTERNAL_ERROR
        assert "IndexError" in evil.outcome.detail
        assert len(host.errors) == 1
        assert "Traceback" in host.errors[0]
    assert host.machine.free_frames == host.machine.frames
