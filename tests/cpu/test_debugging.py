# SPDX-License-Identifier: Apache-2.0
"""Steps, breakpoints and watchpoints from outside: where they stop, whatever the host takes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from memvirt import Machine, VirtualMachine
from memvirt.cpu.debugging import DebugStop, ProcessorDebugging, StopKind, Watchpoint
from memvirt.cpu.processor import ProcessorError
from memvirt.vmm.content import COMPRESS
from memvirt.vmm.stores.compression_cache import CompressionCache
from tests.engine.own_build import own_build_only
from tests.small_guest import PAGING_MODES, flat_guest

# Labels are at known distances: every instruction before `data` is here on purpose.
SOURCE = """
        mov     $5, %ecx                # 5 bytes
again:  addq    $3, data                # 9
        dec     %ecx                    # 2
        jnz     again                   # 2
        mov     $data, %esi             # 5
        mov     $data + 64, %edi        # 5
        mov     $3, %ecx                # 5
copy:   rep movsb                       # 2
        mov     data + 8, %al           # 7
        mov     $0x10, %al              # 2
        out     %al, $0xF4              # 2
        hlt
        .balign 8
data:   .quad   0, 0
"""
_START = 0x10_0000
_AGAIN, _COPY = _START + 5, _START + 33
_READ_EIGHT, _EXIT = _START + 35, _START + 42
_DATA = _START + 0x30


@pytest.fixture(params=PAGING_MODES)
def vm(request: pytest.FixtureRequest) -> Iterator[VirtualMachine]:
    paging = request.param
    machine = Machine("64M", scatter_seed=None if paging == "flat" else 3)
    with VirtualMachine(machine, memory="16M", paging=paging) as made:
        made.load(flat_guest(SOURCE), protocol="flat")
        yield made


def debugging(vm: VirtualMachine) -> ProcessorDebugging:
    found = vm.processor.debugging
    assert found is not None
    return found


def take_everything(vm: VirtualMachine) -> None:
    """Move all pages, then take them away (flat memory cannot be moved)."""
    if vm.vmm.machine and vm.paging.name != "FLAT":
        if COMPRESS not in vm.vmm.contents.stores:
            vm.vmm.contents.set_store(COMPRESS, CompressionCache(vm.machine, vm.vm_id, 1024))
        pages = range(vm.vmm.pmap.pages)
        vm.vmm.move(pages)
        vm.vmm.unmap(pages)


def run(vm: VirtualMachine) -> DebugStop | None:
    """Until the next stop, or the end; every page is taken away before."""
    take_everything(vm)
    for _ in range(100):
        if vm.run_quantum() is not None:
            return None
        if vm.debug_stop is not None:
            return vm.debug_stop
    raise AssertionError("neither a stop nor an end")


def test_steps_go_through_every_instruction(vm: VirtualMachine) -> None:
    debugger = debugging(vm)
    loop = [_AGAIN, _AGAIN + 9, _AGAIN + 11]
    expected = [*loop * 5, _AGAIN + 13, _AGAIN + 18, _AGAIN + 23]
    # A repeated instruction is a step for each of its iterations, and one that finds the end.
    expected += [_COPY] * 4 + [_READ_EIGHT, _EXIT]
    for rip in expected:
        debugger.step()
        stop = run(vm)
        assert stop is not None
        assert (stop.kind, hex(stop.gva)) == (StopKind.STEP, hex(rip))
    assert vm.vmm.read_physical(_DATA, 1) == b"\x0f"
    assert run(vm) is None
    assert vm.outcome is not None
    assert vm.outcome.succeeded


def test_a_breakpoint_stops_before_its_instruction_each_time(vm: VirtualMachine) -> None:
    debugger = debugging(vm)
    debugger.set_breakpoints([_AGAIN + 9])
    for count in range(1, 6):
        assert run(vm) == DebugStop(StopKind.BREAKPOINT, _AGAIN + 9)
        assert vm.vmm.read_physical(_DATA, 1)[0] == 3 * count
        assert vm.processor.get("rcx") == 6 - count
        debugger.step()  # else it would stop here again
        assert run(vm) == DebugStop(StopKind.STEP, _AGAIN + 11)
    debugger.set_breakpoints([_EXIT])
    assert run(vm) == DebugStop(StopKind.BREAKPOINT, _EXIT)
    assert vm.outcome is None
    debugger.set_breakpoints([])
    assert run(vm) is None
    assert vm.vmm.read_physical(_DATA, 1) == b"\x0f"


@own_build_only
def test_watchpoints_stop_behind_the_access(vm: VirtualMachine) -> None:
    debugger = debugging(vm)
    debugger.set_watchpoints([Watchpoint(_DATA, 4, reads=False, writes=True)])
    for count in range(1, 6):
        assert run(vm) == DebugStop(StopKind.WRITE, _DATA)
        assert vm.processor.get("rip") == _AGAIN + 9
        assert vm.vmm.read_physical(_DATA, 1)[0] == 3 * count
    debugger.set_watchpoints([Watchpoint(_DATA + 8, 1, reads=True, writes=False)])
    assert run(vm) == DebugStop(StopKind.READ, _DATA + 8)
    assert vm.processor.get("rip") == _READ_EIGHT + 7
    assert run(vm) is None


@own_build_only
@pytest.mark.parametrize(("gva", "size"), [(_DATA + 1, 4), (_DATA, 3), (_DATA, 16)])
def test_what_cannot_be_watched_is_refused(vm: VirtualMachine, gva: int, size: int) -> None:
    with pytest.raises(ProcessorError, match="aligned"):
        debugging(vm).set_watchpoints([Watchpoint(gva, size, reads=True, writes=True)])


def test_registers_can_be_read_and_written(vm: VirtualMachine) -> None:
    debugger = debugging(vm)
    values = {
        "fs_base": 0x1234_5678_9000, "gs_base": 0xFFFF_8000_0000_0000, "kernel_gs_base": 0x42,
        "xmm3": 0x0123_4567_89AB_CDEF_FEDC_BA98_7654_3210, "mxcsr": 0x1F80, "st2": 0x4000 << 64 | 5,
        "fctrl": 0x37F,
    }  # fmt: skip
    for name, value in values.items():
        debugger.set(name, value)
    assert {name: debugger.get(name) for name in values} == values
    with pytest.raises(ValueError, match="xmm99"):
        debugger.get("xmm99")


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_floating_point_begins_as_at_power_up(paging: str) -> None:
    """SDM vol. 3A table 9-1: all SSE exceptions are masked, the x87 control word is 0x40."""
    source = "mov $0x620, %eax; mov %rax, %cr4; stmxcsr 0x300000; fnstcw 0x300004; hlt"
    machine = Machine("64M", scatter_seed=None if paging == "flat" else 3)
    with VirtualMachine(machine, memory="16M", paging=paging) as vm:
        vm.load(flat_guest(source), protocol="flat")
        assert (debugging(vm).get("mxcsr"), debugging(vm).get("fctrl")) == (0x1F80, 0x40)
        vm.run(timeout=60)
        assert vm.vmm.read_physical(0x30_0000, 6) == b"\x80\x1f\0\0\x40\0"


def test_the_layout_is_what_this_file_says(tmp_path: Path) -> None:
    image = tmp_path / "guest"
    image.write_bytes(flat_guest(SOURCE))
    said = subprocess.run(
        ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", f"--adjust-vma={_START}", image],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for gva, instruction in (
        (_AGAIN, "addq"), (_COPY, "rep movsb"), (_READ_EIGHT, "mov"), (_EXIT, "mov"),
    ):  # fmt: skip
        line = next(line for line in said.splitlines() if line.startswith(f"  {gva:x}:"))
        assert instruction in line, line
