# SPDX-License-Identifier: Apache-2.0
"""What watching live VMs costs: looking at all pages, hashing, a sample. Needs QEMU and root."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from memvirt.live.discovery import discover
from memvirt.live.errors import LiveError
from memvirt.live.forecast import hash_vm
from memvirt.live.vm import LiveVm, open_kernel_pages
from memvirt.live.watch import LiveHost
from memvirt.live.working_set_way import WorkingSetWay

QEMU = "qemu-system-x86_64"
_REPEATS = 5
# The kinds of memory, each with all of its pages there: in large pages of the host, and in small.
_BACKENDS = {
    "anonymous": "memory-backend-ram,id=ram,size=1G,prealloc=on",
    "memfd": "memory-backend-memfd,id=ram,size=1G,prealloc=on,share=on",
}


def _least_cpu(work: Callable[[], object]) -> float:
    """Processor seconds of the cheapest of a few runs."""
    best = float("inf")
    for _ in range(_REPEATS):
        before = time.process_time()
        work()
        best = min(best, time.process_time() - before)
    return best


def _measure(kind: str, socket: Path) -> None:
    process = subprocess.Popen(
        [
            QEMU, "-name", f"bench-{kind}", "-S", "-display", "none", "-nodefaults",
            "-accel", "tcg", "-m", "1G", "-object", _BACKENDS[kind],
            "-machine", "pc,memory-backend=ram",
            "-qmp", f"unix:{socket},server=on,wait=off",
        ]
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                vm = LiveVm(discover([process.pid])[0])
                break
            except (LiveError, IndexError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        kernel, _ = open_kernel_pages()
        with vm:
            vm.release_monitor()
            states = 1e3 * _least_cpu(lambda: vm.page_states(kernel))
            hashing = _least_cpu(lambda: hash_vm(vm, kernel))
            pages = hash_vm(vm, kernel).hashes.size
        with LiveHost(wanted=lambda found: found.pid == process.pid, way=WorkingSetWay.OFF) as host:
            host.sample()
            sample = 1e3 * _least_cpu(host.sample)
        print(
            f"live {kind:<9} 1 GiB: states of all pages {states:.1f} ms, a sample {sample:.1f} ms, "
            f"hashing {pages / hashing / 1e3:.0f} k pages/s (processor time)"
        )
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Print a line for each kind of memory."""
    if shutil.which(QEMU) is None:
        print(f"live: {QEMU} is not installed")
        return
    with tempfile.TemporaryDirectory(prefix="memvirt-") as directory:
        for kind in _BACKENDS:
            _measure(kind, Path(directory) / kind)
