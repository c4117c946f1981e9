# SPDX-License-Identifier: Apache-2.0
"""A guest beside others: 1 to 32 VMs at once, memory enough for all, on all cores of this host.

Every VM does the same work as the one that is alone. On an idle host with C cores, n VMs should
take n / min(n, C) times as long: *efficiency* is that time over the one measured, and *cores* is
CPU time over wall time. Wall times mean little on a host that does something else: the load before
the run is shown.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from memvirt.host.host import Host
from memvirt.scenario.scenario import parse_scenario

_COUNTS = (1, 2, 4, 8, 16, 32)
_VM_MIB = 16


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds of one host's run."""

    wall: float
    cpu: float


def run(count: int, paging: str, operations: int = 500_000) -> Result:
    """Run ``count`` VMs to their ends."""
    scenario = parse_scenario(
        f"""
        seed = 4
        [machine]
        memory = "{count * (_VM_MIB + 8) + 32}M"
        Mem.ShareScanTime = 0
        [[vm]]
        name = "guest"
        count = {count}
        memory = "{_VM_MIB}M"
        paging = "{paging}"
        append = "workload=random percent=60 operations={operations} balloon=0"
        """,
        "bench",
    )
    with Host(scenario) as host:
        wall, cpu = time.perf_counter(), time.process_time()
        assert host.run()
        return Result(time.perf_counter() - wall, time.process_time() - cpu)


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    print(
        f"1 to {_COUNTS[-1]} VMs of {_VM_MIB} MiB at once on {cores} cores (load {load:.1f} before)"
    )
    print(f"  {'paging':<7} {'VMs':>4} {'wall s':>8} {'CPU s':>8} {'cores':>6} {'efficiency':>11}")
    for paging in ("shadow", "nested"):
        run(1, paging, 1000)  # compile
        alone = run(1, paging)
        for count in _COUNTS:
            now = alone if count == 1 else run(count, paging)
            ideal = alone.wall * count / min(count, cores)
            print(
                f"  {paging:<7} {count:4} {now.wall:8.2f} {now.cpu:8.2f} "
                f"{now.cpu / now.wall:6.2f} {100 * ideal / now.wall:9.0f} %"
            )
