# SPDX-License-Identifier: Apache-2.0
"""Compile all that VMs need before the first one starts, in two processes, and show it.

Both go through the processor's code, from opposite ends, and keep in the cache on disk what they
compiled; so each takes from it what the other has done, and they meet in the middle. The run loop
is one of the ends: it has so many parts of its own that, left to the end, both would compile them
at the same time. Then, for the kernels that Python calls, one runs a guest by itself and scans its
memory, the other runs a small host under pressure.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numba.core import event
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from memvirt.compiled import CALLBACKS, KERNELS, silence_notice
from memvirt.compiled_cache import cache_folder, is_warm, note_warm
from memvirt.cpu.factory import describe_processor, processor_code
from memvirt.host.host import Host
from memvirt.host.vmm_memory import VmmMemory
from memvirt.images import BUNDLED, image_path
from memvirt.machine.machine import Machine
from memvirt.scenario.scenario import parse_scenario
from memvirt.share_table import ShareTable
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmkernel.sharing import PageSharing

from .errors import end_interrupted

_GUEST = "workload=fill"
_HOST = """
[machine]
memory = "48M"
quantum_ms = 2
Mem.ShareScanTime = 0.005
Mem.SamplePeriod = 0.02
Mem.BalancePeriod = 0.02
[[vm]]
name = "shadow"
memory = "16M"
limit = "8M"
paging = "shadow"
append = "workload=idle percent=80 ticks=10 varied=20 balloon=0"
[[vm]]
name = "nested"
memory = "16M"
limit = "8M"
append = "workload=idle percent=80 ticks=10 varied=20 balloon=0"
"""


class _EveryCompilation(event.Listener):  # type: ignore[misc]
    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def on_start(self, event: event.Event) -> None:
        """Nothing has been compiled yet."""

    def on_end(self, event: event.Event) -> None:
        self._act()


@contextlib.contextmanager
def _after_each_kernel(act: Callable[[], None]) -> Iterator[None]:
    listener = _EveryCompilation(act)
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)


def _compile_first_half() -> None:
    for compile_part in processor_code():
        compile_part()
    machine = Machine("32M", scatter_seed=1)
    with VirtualMachine(machine, memory="8M", paging="shadow") as vm:
        vm.load(image_path(BUNDLED), append=_GUEST)
        vm.run()
        memory = VmmMemory(vm.vmm)
        sharing = PageSharing(np.random.default_rng(1))
        sharing.add(memory)
        sharing.scan(memory, memory.pages)
        memory.usage()
    ShareTable().drop_frames(np.zeros(1, np.uint64))


def _compile_other_half() -> None:
    for compile_part in reversed(processor_code()):
        compile_part()
    with Host(parse_scenario(_HOST, "the host that warms up")) as host:
        host.run()


def _other_half() -> None:
    """The second process: ends with the first, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence_notice()
    parent = os.getppid()

    def end_with_parent() -> None:
        if os.getppid() != parent:
            os._exit(1)

    with _after_each_kernel(end_with_parent):
        _compile_other_half()


def _kept(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*.nbi"))


def warm() -> float:
    """Compile what is not in the cache yet; returns the seconds that took. Raises ProcessorError.

    On a terminal a bar on standard error shows how far it is, elsewhere a line says what happens.
    """
    folder = cache_folder()
    if folder is None or is_warm():
        return 0.0
    describe_processor()  # one that cannot be had is an error before all that compiling
    silence_notice()
    started = time.monotonic()
    err = Console(stderr=True)
    bar = Progress(
        TextColumn("memvirt: compiling for this machine, once"),
        BarColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    children: list[subprocess.Popen[bytes]] = []

    def interrupt(*_: object) -> None:
        # No KeyboardInterrupt: raised inside a callback of Numba's it would be lost.
        for child in children:
            child.kill()
        with contextlib.suppress(RuntimeError):  # it was drawing just then
            bar.stop()
        end_interrupted()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        if not err.is_terminal:
            print("memvirt: compiling for this machine, once ...", file=sys.stderr, flush=True)
        processor_code()  # all kernels are defined now
        with bar, subprocess.Popen([sys.executable, "-m", __name__]) as other:
            children.append(other)
            task = bar.add_task("", total=len(KERNELS) + len(CALLBACKS))
            try:
                with _after_each_kernel(lambda: bar.update(task, completed=_kept(folder))):
                    _compile_first_half()
                while other.poll() is None:
                    bar.update(task, completed=_kept(folder))
                    time.sleep(0.1)
            finally:
                other.kill()
    finally:
        signal.signal(signal.SIGINT, before)
    if other.returncode == 0:
        note_warm()
    return time.monotonic() - started


if __name__ == "__main__":
    _other_half()
