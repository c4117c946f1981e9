# SPDX-License-Identifier: Apache-2.0
"""Debian's kernel on memvirt, shadow and nested, beside QEMU (microvm, TCG), in one run.

The same kernel, initramfs, memory and command line. What is timed is the whole process, as a user
starts it: to the first line of the guest's init, and from the begin of each workload to its
verdict, in the host's time. ``make linux-guest`` must have been run.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

GUEST = Path("build/linux-guest")
WORKLOADS = ("compute", "mappings", "processes", "cache", "compile", "fill")
REPEATS = 3
_FIRST_LINE = "linux-guest: Linux"
_TIMEOUT = 60


@dataclass
class Timing:
    """Host seconds since the start of the process, or of each workload."""

    boot: float = 0.0
    total: float = 0.0
    workloads: dict[str, float] = field(default_factory=dict)
    verified: bool = False


def _append(parameters: str) -> str:
    return f"console=ttyS0 quiet {parameters} workload={','.join(WORKLOADS)}"


def memvirt_command(paging: str, parameters: str) -> list[str]:
    return [
        sys.executable, "-m", "memvirt", "boot", str(GUEST / "vmlinuz"),
        "--initrd", str(GUEST / "initrd.img"), "--memory", "256M", "--machine-memory", "400M",
        "--paging", paging, "--append", _append(parameters),
    ]  # fmt: skip


def qemu_command(parameters: str) -> list[str]:
    return [
        "qemu-system-x86_64", "-M", "microvm,acpi=on,rtc=on", "-accel", "tcg", "-cpu", "max",
        "-m", "256M", "-nographic", "-no-reboot", "-kernel", str(GUEST / "vmlinuz"),
        "-initrd", str(GUEST / "initrd.img"), "-append", _append(f"panic=-1 {parameters}"),
        "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
    ]  # fmt: skip


def time_run(command: list[str]) -> Timing:
    """Run ``command`` to its end, watching the guest's console."""
    timing, begun, began = Timing(), "", 0.0
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(_TIMEOUT, process.kill)  # QEMU has been seen to hang in its boot
        watchdog.start()
        for raw in process.stdout:
            now = time.perf_counter()
            line = raw.decode("ascii", "replace").strip()
            if line.startswith(_FIRST_LINE):
                timing.boot = now - start
            elif line.endswith(": begins"):
                begun, began = line.split(": ")[1], now
            elif line.startswith(f"linux-guest: {begun}: verified"):
                timing.workloads[begun] = now - began
            elif line == "linux-guest: verdict: success":
                timing.verified = True
        process.wait()
        watchdog.cancel()
    timing.total = time.perf_counter() - start
    return timing


def best(command: list[str]) -> Timing:
    """The least of each figure over REPEATS runs."""
    runs = [time_run(command) for _ in range(REPEATS)]
    if not all(run.verified for run in runs):
        sys.exit(f"a guest did not verify: {' '.join(command)}")
    return Timing(
        boot=min(run.boot for run in runs),
        total=min(run.total for run in runs),
        workloads={name: min(run.workloads[name] for run in runs) for name in WORKLOADS},
        verified=True,
    )


def report(parameters: str) -> None:
    """Time the three and print them side by side."""
    qemu = best(qemu_command(parameters))
    columns = [("qemu", qemu)]
    for paging in ("shadow", "nested"):
        columns.append((paging, best(memvirt_command(paging, parameters))))
    print(f"Seconds of the host, best of {REPEATS} runs; kernel parameters: {parameters or '-'}")
    print(f"  {'':<12}{'qemu':>8}{'shadow':>9}{'nested':>9}{'shadow/qemu':>14}{'nested/qemu':>14}")
    rows = [("to init", [timing.boot for _, timing in columns])]
    rows += [(name, [timing.workloads[name] for _, timing in columns]) for name in WORKLOADS]
    rows.append(("workloads", [sum(t.workloads.values()) for _, t in columns]))
    rows.append(("all", [timing.total for _, timing in columns]))
    for name, (peer, shadow, nested) in rows:
        print(
            f"  {name:<12}{peer:8.2f}{shadow:9.2f}{nested:9.2f}"
            f"{shadow / peer:13.2f}x{nested / peer:13.2f}x"
        )


def main() -> None:
    if not (GUEST / "initrd.img").exists():
        sys.exit("no Linux guest: run make linux-guest first")
    report("")
    report("mitigations=off")
