# SPDX-License-Identifier: Apache-2.0
"""Debian's kernel on memvirt, shadow and nested, beside QEMU (microvm, TCG), in one run.

The same kernel, initramfs, memory and command line. What is timed is the whole process, as a user
starts it: to the first line of the guest's init, and from the begin of each workload to its
verdict, in the host's time; and the CPU time of the whole process, which other work on the machine
disturbs less. memvirt runs on its own build of the engine and on the package index's, each run
beside QEMU's. ``make linux-guest`` must have been run.

QEMU hangs in its boot where a loaded machine lets it calibrate the time-stamp counter: all get the
frequencies (``lpj``, ``tsc_early_khz``) on the command line.
"""

from __future__ import annotations

import os
import re
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
    """Host seconds since the process began, or each workload; CPU seconds of all."""

    cpu: float = 0.0
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


def frequencies() -> str:
    """Kernel parameters that spare a guest its calibration loops (Debian's kernels: 250 Hz)."""
    found = re.search(r"cpu MHz\s*:\s*([0-9.]+)", Path("/proc/cpuinfo").read_text())
    khz = int(float(found[1]) * 1000) if found else 2_000_000
    return f"lpj={khz * 4} tsc_early_khz={khz}"


def time_run(command: list[str], engine: str) -> Timing:
    """Run ``command`` to its end, watching the guest's console."""
    timing, begun, began = Timing(), "", 0.0
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"MEMVIRT_ENGINE": engine},
    ) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(_TIMEOUT, process.kill)  # QEMU has hung in its boot
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
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        timing.cpu = usage.ru_utime + usage.ru_stime
        watchdog.cancel()
    timing.total = time.perf_counter() - start
    return timing


def least(runs: list[Timing], name: str) -> Timing:
    """The least of each figure. Exits if a guest did not verify."""
    if not all(run.verified for run in runs):
        sys.exit(f"a guest did not verify: {name}")
    return Timing(
        cpu=min(run.cpu for run in runs),
        boot=min(run.boot for run in runs),
        total=min(run.total for run in runs),
        workloads={name: min(run.workloads[name] for run in runs) for name in WORKLOADS},
        verified=True,
    )


def report(parameters: str) -> None:
    """Time all, in turn so that other work on the machine meets all alike; print side by side."""
    given = f"{frequencies()} {parameters}".strip()
    kinds = {
        "qemu": (qemu_command(given), ""),
        "shadow": (memvirt_command("shadow", given), "own"),
        "nested": (memvirt_command("nested", given), "own"),
        "wheel": (memvirt_command("nested", given), "wheel"),
    }
    runs: dict[str, list[Timing]] = {name: [] for name in kinds}
    for _ in range(REPEATS):
        for name, (command, engine) in kinds.items():
            runs[name].append(time_run(command, engine))
    timings = {name: least(of_kind, name) for name, of_kind in runs.items()}
    print(f"Seconds of the host, best of {REPEATS} runs; kernel parameters: {given}")
    print("shadow, nested: memvirt's build of the engine; wheel: the package index's, nested")
    print(f"  {'':<12}" + "".join(f"{name:>9}" for name in kinds) + f"{'ratios to QEMU':>24}")
    rows = [("CPU, all", [timing.cpu for timing in timings.values()])]
    rows.append(("to init", [timing.boot for timing in timings.values()]))
    rows += [(name, [t.workloads[name] for t in timings.values()]) for name in WORKLOADS]
    rows.append(("workloads", [sum(t.workloads.values()) for t in timings.values()]))
    rows.append(("all", [timing.total for timing in timings.values()]))
    for name, (peer, *ours) in rows:
        figures = "".join(f"{value:9.2f}" for value in (peer, *ours))
        print(f"  {name:<12}{figures}" + "".join(f"{value / peer:8.2f}" for value in ours))


def main() -> None:
    if not (GUEST / "initrd.img").exists():
        sys.exit("no Linux guest: run make linux-guest first")
    report("")
    report("mitigations=off")
