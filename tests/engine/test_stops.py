# SPDX-License-Identifier: Apache-2.0
"""Every reason to stop the engine, in the middle of a block and at its begin, and nothing after it.

The engine counts blocks and asks nothing after an access (engine/changes 01 to 03); these tests
hold on the package index's build as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from memvirt import EndReason, Machine, VirtualMachine
from memvirt.platform.boot.detect import Protocol
from tests.small_guest import PAGING_MODES, VIRTUALIZED, flat_guest, run_small, small_guest

from .own_build import own_build_only

_LOOPS = {
    "jump": "1: jmp 1b",
    "stores": "mov $0x200000, %ebx; 1: mov %rax, (%rbx); mov %rax, 8(%rbx); jmp 1b",
    "loads": "mov $0x200000, %ebx; 1: mov (%rbx), %rax; jmp 1b",
    "calls": "1: call 2f; jmp 1b; 2: ret",
    "string": "1: mov $0x200000, %edi; mov $512, %ecx; rep stosq; jmp 1b",
}


def _vm(source: str, paging: str) -> VirtualMachine:
    machine = Machine("32M", scatter_seed=None if paging == "flat" else 3)
    vm = VirtualMachine(machine, memory="8M", paging=paging)
    vm.load(flat_guest(f"mov $0x180000, %esp\n{source}"), protocol=Protocol.FLAT)
    return vm


@pytest.mark.parametrize("paging", PAGING_MODES)
@pytest.mark.parametrize("loop", _LOOPS)
def test_a_quantum_ends_at_its_deadline(loop: str, paging: str) -> None:
    with _vm(_LOOPS[loop], paging) as vm:
        for quantum in range(1, 6):
            assert vm.run_quantum(100_000) is None
            assert 0 <= vm.virtual_ns - quantum * 100_000 < 1_000


@pytest.mark.parametrize("paging", PAGING_MODES)
@pytest.mark.parametrize("loop", _LOOPS)
def test_another_thread_stops_an_endless_loop(loop: str, paging: str) -> None:
    with _vm(_LOOPS[loop], paging) as vm:
        vm.run_quantum(100_000)  # compiled, and the loop translated
        runner = threading.Thread(target=vm.run_quantum, args=(10**15,))
        runner.start()
        while runner.is_alive():
            vm.processor.request_stop()
            runner.join(0.01)
        assert vm.virtual_ns < 10**15


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_a_fault_in_a_block_leaves_the_rest_of_it_undone(paging: str) -> None:
    """A load and a store from an address that is not canonical, and from one that is not mapped."""
    lines = ["test:"]
    addresses = {"canonical": 0x8000_0000_0000, "absent": 0x70_0000_0000}
    for name, address in addresses.items():
        for kind, access in (("load", "mov (%rcx), %rdx"), ("store", "mov %rdx, (%rcx)")):
            lines += [
                f"movabs ${address:#x}, %rcx; xor %ebx, %ebx; movq $0, idt",
                f".macro BLOCK_{name}_{kind}",
                f"add $1, %ebx; here_{name}_{kind}: {access}; add $2, %ebx; movq $1, idt",
                ".endm",
                f"ATTEMPT BLOCK_{name}_{kind}",
                f"REPORT vector_{name}_{kind}, vector",
                f"mov fault_rip, %rax; sub $here_{name}_{kind}, %rax",
                f"REPORT distance_{name}_{kind}, %rax",
                f"REPORT done_{name}_{kind}, %rbx",
                f"REPORT stored_{name}_{kind}, idt",
            ]
    values = run_small(small_guest("\n".join([*lines, "ret"])), paging).values
    for name, vector in (("canonical", 13), ("absent", 14)):
        for kind in ("load", "store"):
            got = [
                values[f"{what}_{name}_{kind}"] for what in ("vector", "distance", "done", "stored")
            ]
            assert got == [vector, 0, 1, 0], (name, kind)


@pytest.mark.parametrize("paging", VIRTUALIZED)
def test_a_refused_port_access_leaves_the_rest_of_its_block_undone(paging: str) -> None:
    source = """
test:   movq $0, user_word
        movw $0x68, tss + 0x66                  # no I/O permission bitmap
        mov $user, %edi
        mov %rsp, recover_stack
        movq $after, recover
        jmp go_user
user:   xor %ebx, %ebx
        add $1, %ebx
refused: outb %al, $0x80
        add $2, %ebx
        movq $1, user_word
        jmp .
        .section .bss
user_word: .skip 8
        .text
after:  REPORT vector, vector
        mov fault_rip, %rax
        sub $refused, %rax
        REPORT distance, %rax
        REPORT done, %rbx
        REPORT stored, user_word
        VERDICT 0x10"""
    values = run_small(small_guest(source), paging).values
    assert [values[k] for k in ("vector", "distance", "done", "stored")] == [13, 0, 1, 0]


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_an_exit_request_and_a_halt(paging: str) -> None:
    with _vm("mov $0x10, %al; out %al, $0xF4; mov %rax, 0x200000; 1: jmp 1b", paging) as vm:
        assert vm.run(timeout=60).succeeded
    with _vm("mov %rax, 0x200000; cli; hlt; 1: jmp 1b", paging) as vm:
        assert vm.run(timeout=60).reason is EndReason.HALTED


@pytest.mark.parametrize("paging", VIRTUALIZED)
def test_pages_taken_away_between_quanta(paging: str) -> None:
    """Every translation the engine had must be gone: the guest checks what it wrote."""
    source = """
test:   mov $200, %r8d
1:      mov $0x800000, %ebx
2:      incq (%rbx)
        add $0x1000, %rbx
        cmp $0xC00000, %rbx
        jne 2b
        dec %r8d
        jnz 1b
        mov $0x800000, %ebx
3:      cmpq $200, (%rbx)
        jne 4f
        add $0x1000, %rbx
        cmp $0xC00000, %rbx
        jne 3b
        VERDICT 0x10
4:      VERDICT 0x11"""
    turn = iter(range(10**9))

    def take(vm: VirtualMachine) -> None:
        vm.vmm.move(range(0x800 + next(turn) % 7, 0xC00, 7))

    ran = run_small(small_guest(source), paging, between=take, quantum_ns=50_000, most_quanta=10**6)
    assert ran.outcome.succeeded


# What depends on the size of the TLB, which in the package index's build follows the host's clock.
_WALKS = ("walks", "walk_references", "guest_walks", "guest_walk_references")
_CLOCKED = {"processor": ("tlb_fills",), "memory": _WALKS}


def _statistics(choice: str, paging: str, folder: Path) -> dict[str, Any]:
    file = folder / "statistics.json"
    subprocess.run(
        [sys.executable, "-m", "memvirt", "boot", "bundled", "--append", "workload=faults",
         "--paging", paging, "--stats", file],
        env=os.environ | {"MEMVIRT_ENGINE": choice},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    statistics: dict[str, Any] = json.loads(file.read_text())
    del statistics["host_seconds"], statistics["processor"]["implementation"]
    return statistics


@own_build_only
@pytest.mark.parametrize("paging", VIRTUALIZED)
def test_runs_make_the_same_counts_on_either_build(paging: str, tmp_path: Path) -> None:
    """Virtual time, exits by reason, exceptions, fills, walks: to the last one."""
    own = _statistics("own", paging, tmp_path)
    assert own == _statistics("own", paging, tmp_path)
    wheel = _statistics("wheel", paging, tmp_path)
    for part, names in _CLOCKED.items():
        for name in names:
            del own[part][name], wheel[part][name]
    assert own == wheel
