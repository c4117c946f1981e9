# SPDX-License-Identifier: Apache-2.0
"""Guests of a few instructions, assembled when a test runs and run in every paging mode.

``small_guest(source)`` puts ``small_guest.S`` before the source (it explains what a guest finds and
the macros there are) and gives a Multiboot image, which QEMU boots as well. ``flat_guest(source)``
is the bare source, started in 64-bit mode at 1 MiB.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from memvirt import EndReason, Machine, Outcome, VirtualMachine
from memvirt.vmm.check import check_machine

PAGING_MODES = ("flat", "shadow", "nested")
VIRTUALIZED = ("shadow", "nested")
_HERE = Path(__file__).parent
_LOAD = 0x100000


@dataclass(frozen=True)
class Ran:
    """How a small guest ended, and the values it reported by name."""

    outcome: Outcome
    values: dict[str, int]
    console: str

    @property
    def reason(self) -> EndReason:
        return self.outcome.reason


@cache
def assemble(source: str) -> bytes:
    """``source``, from its own first byte on, as it lies at 1 MiB. It has a symbol ``start``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            ["as", "--64", "-I", _HERE, "-o", folder / "guest.o", "-"],
            input=source.encode(),
            check=True,
        )
        subprocess.run(
            ["ld", "-m", "elf_x86_64", "-N", "--no-warnings", f"-Ttext={_LOAD:#x}", "-e", "start",
             "--oformat", "binary", "-o", folder / "guest", folder / "guest.o"],
            check=True,
        )  # fmt: skip
        return (folder / "guest").read_bytes()


def small_guest(source: str) -> bytes:
    """A Multiboot image: the prelude, then ``source``, which defines ``test``."""
    return assemble(
        '.include "small_guest_shared.S"\n.include "small_guest_macros.S"\n'
        f'.include "small_guest.S"\n.code64\n{source}\n'
    )


def small_guest_32(source: str) -> bytes:
    """As ``small_guest``, in 32-bit protected mode without paging (``small_guest_32.S``)."""
    return assemble(
        f'.include "small_guest_shared.S"\n.include "small_guest_32.S"\n.code32\n{source}\n'
    )


def flat_guest(source: str) -> bytes:
    """A flat image (``protocol="flat"``) entered at the first instruction of ``source``."""
    return assemble(f".code64\n.text\n.globl start\nstart:\n{source}\n")


def values_of(console: str) -> dict[str, int]:
    """What REPORT printed."""
    pairs = (line.split("=") for line in console.splitlines() if line.count("=") == 1)
    return {name: int(value, 16) for name, value in pairs}


def run_small(
    image: bytes,
    paging: str,
    *,
    protocol: str = "auto",
    memory: str = "16M",
    timeout: float = 300,
    between: Callable[[VirtualMachine], object] | None = None,
    quantum_ns: int = 10_000_000,
    most_quanta: int = 1000,
) -> Ran:
    """Run ``image`` to its end, the invariants checked at the end.

    ``between`` is called between quanta. A guest that has not ended after ``most_quanta`` is
    stopped.
    """
    machine = Machine("64M", scatter_seed=None if paging == "flat" else 3)
    with VirtualMachine(machine, memory=memory, paging=paging) as vm:
        vm.load(image, protocol=protocol)
        for _ in range(most_quanta):
            if vm.run_quantum(quantum_ns) is not None:
                break
            if between is not None:
                between(vm)
        vm.stop()
        if paging != "flat":
            assert check_machine(machine, [vm.vmm]) == []
        assert vm.outcome is not None
        console = bytes(vm.serial_log).decode("latin-1")
        return Ran(vm.outcome, values_of(console), console)


def run_qemu(image: bytes, *, cpu: str = "max", timeout: float = 300) -> tuple[int, dict[str, int]]:
    """Exit value and reported values of a ``small_guest`` under QEMU's own translation."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "guest"
        path.write_bytes(image)
        done = subprocess.run(
            ["qemu-system-x86_64", "-accel", "tcg", "-cpu", cpu, "-m", "64M", "-nodefaults",
             "-no-reboot", "-display", "none", "-serial", "stdio",
             "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", path],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip
    return done.returncode >> 1, values_of(done.stdout.decode("latin-1"))
