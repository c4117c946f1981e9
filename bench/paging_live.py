# SPDX-License-Identifier: Apache-2.0
"""Paging a process that is not ours: pages/s out and in, and what a fault costs beside an evictor.
Before it, the kernel's own way with the same memory: advice (MADV_PAGEOUT) to swap in zram.

A child process plays the VM: shared memory, half of its pages compressible. It gets its userfaultfd
by an injected system call, as QEMU does, but there is no monitor to drain: with QEMU a batch costs
0.6 ms and more on top. The child measures its own faults, from the touch to the value. Needs root.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import memvirt.live.pager.ptrace as injected
from memvirt.address import PAGE_BYTES, HostVirtualAddress
from memvirt.live.host_memory import read_host_pages
from memvirt.live.manage.pageout import PAGEOUT, Adviser
from memvirt.live.pager.attachment import Role, RoleLock, Way, find_attachment, take_descriptor
from memvirt.live.pager.collisions import refuse_kernel
from memvirt.live.pager.evictor import Supervision
from memvirt.live.pager.handoff import HandOffSupervision
from memvirt.live.pager.latency import percentile
from memvirt.live.pager.page_states import PageIndex, PageTableFile, Word
from memvirt.live.pager.paged_memory import Region
from memvirt.live.pager.session import StoreOptions, attach
from memvirt.live.pager.supervisor import Policy, Supervisor
from memvirt.live.pager.transport import Offer
from memvirt.live.pager.victims import Goal
from memvirt.live.process import Process

from .zram import NoZram, zram_swap

_PAGES = 1 << 15
_SECONDS = 5.0
_WORKERS = (Role.EVICTOR, Role.HANDLER)


class ChildTransport:
    """A process that maps a memfd at ``start``."""

    way = Way.QEMU
    name = "bench"

    def __init__(self, pid: int, start: int) -> None:
        self.pid = pid
        self._start = start

    def regions(self) -> tuple[Region, ...]:
        refuse_kernel()
        start = HostVirtualAddress(self._start)
        return (Region(start, _PAGES * PAGE_BYTES, 0, PageIndex(0)),)

    def open(self) -> Offer:
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        number = injected.run_system_call(self.pid, injected.SYS_USERFAULTFD, flags)
        return Offer(take_descriptor(self.pid, number), number, registered=False)

    def close_remote(self, descriptor: int) -> None:
        injected.run_system_call(self.pid, injected.SYS_CLOSE, descriptor)

    def serving(self) -> None:
        pass

    def supervision(self, table: PageTableFile) -> Supervision:
        return HandOffSupervision(self.name, no_direct_io=True)


def play_vm() -> None:
    """The child: commands on standard input, an answer on standard output."""
    memory_file = os.memfd_create("ram")
    os.ftruncate(memory_file, _PAGES * PAGE_BYTES)
    memory = mmap.mmap(memory_file, _PAGES * PAGE_BYTES)
    for page in range(_PAGES):
        half = os.urandom(PAGE_BYTES // 2)
        memory[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = half + (
            bytes(PAGE_BYTES // 2) if page % 2 else half[::-1]
        )
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:ram" in line:
            print(int(line.partition("-")[0], 16), flush=True)
    choose = random.Random(1)
    for command in sys.stdin:
        took = []
        if command.strip() == "all":
            pages, end = iter(range(_PAGES)), float("inf")
        else:
            pages = iter(lambda: choose.randrange(_PAGES), -1)
            end = time.perf_counter() + float(command)
        for page in pages:
            begun = time.perf_counter_ns()
            memory[page * PAGE_BYTES]
            took.append(time.perf_counter_ns() - begun)
            if time.perf_counter() > end:
                break
        faults = sorted(ns / 1000 for ns in took if ns > 5000)  # others were in memory
        at = {f"{q:g}": faults[int(len(faults) * q)] for q in (0.5, 0.99)} if faults else {}
        print(json.dumps({"faults": len(faults), "seconds": sum(took) / 1e9} | at), flush=True)


def _page(transport: ChildTransport, store: Path, target: int) -> int:
    """A supervisor in a process of its own; its process number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        session = attach(transport, StoreOptions(store))
        RoleLock(session.directory, Role.SUPERVISOR).acquire()
        Supervisor(session, transport, Policy(Goal(target)), lambda text: None).run()
        status = 0
    finally:
        os._exit(status)


def _wait_until_out(table: PageTableFile, pages: int) -> float:
    """Pages per second until ``pages`` are out."""
    before, begun = table.words[Word.EVICTED], time.perf_counter()
    while table.count_stored() < pages:
        time.sleep(0.002)
    return (table.words[Word.EVICTED] - before) / (time.perf_counter() - begun)


def _cpu_seconds(directory: Path, role: Role) -> float:
    lock = RoleLock(directory, role)
    pid = lock.holder()
    lock.release()
    assert pid is not None
    with Process(pid) as process:
        return process.cpu_seconds()


def _beside_zram(pid: int, start: int, ask: Callable[[str], dict[str, float]]) -> None:
    """The kernel's pages/s out and in, with the same memory of the same process."""
    try:
        with zram_swap("512M"), Process(pid) as process, Adviser(process) as adviser:
            before, begun = time.process_time(), time.perf_counter()
            adviser.advise([(start, _PAGES * PAGE_BYTES)], PAGEOUT)
            seconds, cost = time.perf_counter() - begun, time.process_time() - before
            out = read_host_pages().swap_used
            answer = ask("all")
            print(
                f"zram out: {out / seconds:,.0f} pages/s; processor time for a page: "
                f"{cost / max(out, 1) * 1e6:.1f} us; in: {out / answer['seconds']:,.0f} pages/s, "
                "one thread, in order"
            )
    except NoZram as problem:
        print(f"zram: {problem}")


def main() -> None:
    """Print the figures."""
    arguments = [sys.executable, "-c", "from bench.paging_live import play_vm; play_vm()"]
    child = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None

    def ask(command: str) -> dict[str, float]:
        child.stdin.write(command + "\n")
        child.stdin.flush()
        return dict(json.loads(child.stdout.readline()))

    start = int(child.stdout.readline())
    _beside_zram(child.pid, start, ask)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["MEMVIRT_RUNTIME_DIR"] = f"{directory}/runtime"
        transport = ChildTransport(child.pid, start)
        supervisor = _page(transport, Path(directory) / "store", _PAGES // 4 * PAGE_BYTES)
        try:
            while (found := find_attachment(child.pid)) is None:
                time.sleep(0.001)
            table = PageTableFile(found / "pages")
            rate = _wait_until_out(table, _PAGES * 3 // 4 - 512)
            evicted = table.words[Word.EVICTED]
            cost = {role.value: _cpu_seconds(found, role) / evicted * 1e6 for role in _WORKERS}
            print(
                f"out: {rate:,.0f} pages/s; processor time for a page: "
                + ", ".join(f"{name} {cost_us:.1f} us" for name, cost_us in cost.items())
            )
            beside = ask(str(_SECONDS))
            print(
                f"{beside['faults']:.0f} random faults beside the evictor, seen by the process: "
                f"median {beside['0.5']:.0f} us, 99 % {beside['0.99']:.0f} us"
            )
            histogram = list(table.histogram)
            print(
                f"from reading a fault to its answer: median {percentile(histogram, 0.5)} us, "
                f"99 % {percentile(histogram, 0.99)} us"
            )
            before = table.words[Word.RESTORED]
            answer = ask("all")
            restored = table.words[Word.RESTORED] - before
            print(f"in: {restored / answer['seconds']:,.0f} pages/s, one thread, in order")
        finally:
            os.kill(supervisor, signal.SIGTERM)
            os.waitpid(supervisor, 0)
            child.kill()
            child.communicate()
