# SPDX-License-Identifier: Apache-2.0
"""Instructions that no software processor executes inline, beside QEMU (TCG), in one run.

Each is a loop of a guest that both start (``guest/exits.S``; gcc builds it). A figure is the CPU
time of a run of many turns less that of a run of none, by turn: the start of the processes, the
translation of the code and the guest's own beginning cancel out. The empty loop is subtracted.
"""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from memvirt import Machine, PagingMode, VirtualMachine
from memvirt.cpu.factory import describe_processor

LOOPS = (
    "an empty loop", "cpuid", "rdtsc", "mov cr8", "CR0.WP on, off", "CR4.PGE on, off", "mov cr3",
    "invlpg", "out to port 0x80", "#UD and iret", "code patched from another page",
    "code patched from its own page", "TLB miss, pages in order", "TLB miss, random order",
    "code patched in its own block",
)  # fmt: skip
_SOURCE = Path(__file__).parent / "guest" / "exits.S"
_MARK = b"count -->".ljust(16, b"\0")  # the number of turns follows
_QEMU = (
    "qemu-system-x86_64", "-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "64M", "-nodefaults",
    "-display", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
)  # fmt: skip
_QEMU_SUCCESS = 0x10 << 1 | 1
_ENOUGH = 0.4  # CPU seconds of a run that is long enough to be measured
REPEATS = 3


def build(loop: int, folder: Path) -> bytes:
    """The guest with loop ``loop``, a Multiboot ELF of 32 bits, which is what loaders take."""
    linked, image = folder / "linked", folder / "image"
    linker = "-Wl,-N,-Ttext=0x100000,--build-id=none,--no-warn-rwx-segments"
    flags = [f"-DLOOP={loop}", "-nostdlib", "-static", linker]
    subprocess.run(["gcc", *flags, "-o", linked, _SOURCE], check=True)
    subprocess.run(["objcopy", "-O", "elf32-i386", linked, image], check=True)
    return image.read_bytes()


def with_turns(image: bytes, turns: int) -> bytes:
    """``image`` with its number of turns set."""
    at = image.index(_MARK) + len(_MARK)
    return image[:at] + struct.pack("<I", turns) + image[at + 4 :]


def qemu_seconds(image: bytes, folder: Path) -> float:
    """CPU seconds of QEMU with this guest."""
    path = folder / "guest"
    path.write_bytes(image)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*_QEMU, "-kernel", path], check=False, timeout=120)
    assert done.returncode == _QEMU_SUCCESS, done
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def memvirt_seconds(image: bytes, paging: PagingMode) -> float:
    """CPU seconds of a VM with this guest."""
    with VirtualMachine(Machine("96M", scatter_seed=1), memory="64M", paging=paging) as vm:
        vm.load(image)
        started = time.thread_time()
        outcome = vm.run(timeout=120)
        seconds = time.thread_time() - started
    assert outcome.succeeded, outcome
    return seconds


def nanoseconds(image: bytes, kind: str, folder: Path) -> float:
    """Nanoseconds of CPU time a turn takes on ``kind``: "qemu", or a paging mode."""

    def run(turns: int) -> float:
        guest = with_turns(image, turns)
        if kind == "qemu":
            return qemu_seconds(guest, folder)
        return memvirt_seconds(guest, PagingMode[kind.upper()])

    run(0)  # loads or compiles memvirt's kernels
    turns, least = 20_000, run(0)
    while (seconds := run(turns) - least) < _ENOUGH:
        turns = min(turns * 8, int(turns * _ENOUGH * 1.5 / max(seconds, 0.01)) + 1)
    return min(seconds, *(run(turns) - least for _ in range(REPEATS - 1))) / turns * 1e9


def main() -> None:
    kinds = ("qemu", "shadow", "nested")
    print(f"Nanoseconds of CPU time an instruction takes; {describe_processor()}")
    print(f"{' '.join(_QEMU[:9])}; best of {REPEATS} runs, the empty loop subtracted")
    print(f"  {'':<32}" + "".join(f"{kind:>10}" for kind in kinds) + f"{'ratios to QEMU':>20}")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        empty = dict.fromkeys(kinds, 0.0)
        for loop, title in enumerate(LOOPS):
            image = build(loop, Path(name))
            cost = {kind: nanoseconds(image, kind, Path(name)) - empty[kind] for kind in kinds}
            if loop == 0:
                empty = cost
            figures = "".join(f"{cost[kind]:10.1f}" for kind in kinds)
            ratios = "".join(f"{cost[kind] / cost['qemu']:10.2f}" for kind in kinds[1:])
            print(f"  {title:<32}{figures}{ratios}", flush=True)
