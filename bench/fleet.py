# SPDX-License-Identifier: Apache-2.0
"""A fleet of hosts over a week, and the pages of many dumps, on one worker and on two.

CPU seconds of all processes, and wall time, which says little where others use the machine. What it
costs to start workers and to load their compiled kernels is told apart. Hosts are made where they
are simulated, from the seed, so that what is measured is the policy and not the shipping of data.
The yardstick of the analysis is a plain sort of as many 64-bit hashes in Polars, without reading or
hashing a page.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from memvirt.plan.assumptions import Draw
from memvirt.plan.content.analysis import analyze
from memvirt.plan.executor import Executor, OnDask, executor
from memvirt.plan.generate import generate
from memvirt.plan.policy import HostRules, MemoryOptions
from memvirt.plan.rounds import simulate_host

HOSTS = int(os.environ.get("BENCH_FLEET_HOSTS", "1000"))
DUMP_GIB = int(os.environ.get("BENCH_FLEET_DUMP_GIB", "256"))
_VMS_A_HOST = 40
_GIB_PAGES = 1 << 18
_DATA_PAGES = 1 << 18  # pages of a dump that hold something; the rest of it is a hole
_DUMP_BYTES = 32 << 30


def one_host(number: int) -> tuple[int, int, float, float]:
    """Simulate one host of 256 GiB for a week at five minutes; the worst state it sees."""
    fleet = generate(_VMS_A_HOST, days=7, interval=300, seed=number)
    rules = HostRules(256 * _GIB_PAGES, MemoryOptions())
    started = time.process_time()
    run = simulate_host(rules, fleet, Draw(1, 0.5, 0.5, 0))
    return number, int(run.worst), float(run.swapped.max()), time.process_time() - started


def _cpu(where: Executor) -> float:
    """CPU seconds of this process and of all workers so far."""
    own = time.process_time()
    if isinstance(where, OnDask):
        own += sum(where.client.run(time.process_time).values())
    return own


def _silent(done: int, total: int) -> None:
    pass


def hosts(workers: int) -> Any:
    start, start_cpu = time.perf_counter(), time.process_time()
    with executor(workers=workers) as where:
        where.map(one_host, list(range(4 * workers)), _silent)
        before, started = _cpu(where), time.perf_counter()
        results = where.map(one_host, list(range(HOSTS)), _silent)
        seconds, wall = _cpu(where) - before, time.perf_counter() - started
    policy = sum(result[3] for result in results)
    print(
        f"  {_of(workers)}  {wall:8.1f} s wall  {seconds:8.1f} CPU s in all, {policy:8.1f} in the "
        f"policy (started in {started - start:.1f} s, {before - start_cpu:.1f} CPU s)"
    )
    return [result[:3] for result in results]


def _of(workers: int) -> str:
    return f"{workers} worker{'s' if workers > 1 else ' '}"


def write_dumps(folder: Path) -> list[Path]:
    """Sparse raw dumps: a quarter of the data common to all, the rest each one's own."""
    common = np.random.default_rng(0).integers(0, 256, (_DATA_PAGES // 4, 4096), dtype=np.uint8)
    paths = []
    for number in range(max(DUMP_GIB << 30 >> 35, 1)):
        random = np.random.default_rng(number + 1)
        path = folder / f"vm{number}"
        with path.open("wb") as file:
            file.truncate(_DUMP_BYTES)
            file.write(common.data)
            own = random.integers(0, 256, (_DATA_PAGES - common.shape[0], 2048), dtype=np.uint8)
            file.seek(_DUMP_BYTES // 2)
            file.write(np.repeat(own, 2, axis=1).data)
        paths.append(path)
    return paths


def pages(paths: list[Path], workers: int) -> Any:
    start = time.perf_counter()
    with executor(workers=workers) as where:
        analyze(paths[:1], where, lambda what: _silent)  # loads the kernels
        before, started = _cpu(where), time.perf_counter()
        found = analyze(paths, where, lambda what: _silent)
        seconds, wall = _cpu(where) - before, time.perf_counter() - started
    data = len(paths) * _DATA_PAGES
    print(
        f"  {_of(workers)}  {wall:8.1f} s wall  {seconds:8.1f} CPU s: "
        f"{found.pages / seconds:12,.0f} pages/s a core, {data / seconds:10,.0f} of them with data "
        f"(started in {started - start:.1f} s)"
    )
    return found


def sort_of_hashes(count: int) -> None:
    hashes = pl.Series(np.random.default_rng(0).integers(0, 1 << 63, count, dtype=np.uint64))
    before = time.process_time()
    hashes.sort()
    seconds = time.process_time() - before
    print(f"  a sort of {count:,} hashes in Polars: {count / max(seconds, 1e-9):14,.0f} pages/s")


def main() -> None:
    print(f"{HOSTS:,} hosts of 256 GiB with {HOSTS * _VMS_A_HOST:,} VMs, 7 days at 5 minutes")
    one, two = hosts(1), hosts(2)
    print(f"  equal on one and two workers: {one == two}")
    states = np.bincount([result[1] for result in one], minlength=5)
    names = ("high", "clear", "soft", "hard", "low")
    print("  worst state: " + ", ".join(f"{n} {c}" for n, c in zip(names, states, strict=True)))
    with tempfile.TemporaryDirectory(prefix="memvirt-bench-") as folder:
        paths = write_dumps(Path(folder))
        total = len(paths) * (_DUMP_BYTES >> 30)
        print(f"{len(paths)} dumps, {total:,} GiB of guest memory, most of it holes")
        found, again = pages(paths, 1), pages(paths, 2)
        print(f"  equal on one and two workers: {found == again}")
        sort_of_hashes(len(paths) * _DATA_PAGES)
