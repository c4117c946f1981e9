# SPDX-License-Identifier: Apache-2.0
"""A guest on an overcommitted host beside the same guest alone.

The host has half of the configured memory of two VMs; the other one has written three quarters of
its memory and is idle, so some of it has to make room.

Virtual time is what the guest sees, the wait for its own pages included; wall time is what the host
spends on it. Each pair is measured in one run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from memvirt.host.host import Host
from memvirt.scenario.scenario import parse_scenario

_WORKLOAD = "workload=random percent=60 operations=6000000"
_NEIGHBOUR = """
        [[vm]]
        name = "neighbour"
        memory = "48M"
        append = "workload=idle percent=85 ticks=150 balloon=0"
"""


@dataclass
class Result:
    """One guest's run."""

    virtual: float
    wall: float
    waited: float
    reads: int


def run(machine: str, paging: str, append: str, neighbour: str = "") -> Result:
    """Run one guest of 48 MiB on ``machine`` to its end."""
    scenario = parse_scenario(
        f"""
        seed = 3
        [machine]
        memory = "{machine}"
        Mem.ShareScanTime = 0
        Mem.MemZipEnable = false
        Mem.AllocGuestLargePage = false
        Mem.SamplePeriod = 0.05
        Mem.BalancePeriod = 0.05
        {neighbour}
        [[vm]]
        name = "guest"
        memory = "48M"
        start = 0.2
        paging = "{paging}"
        append = "{append} balloon=0"
        """,
        "bench",
    )
    with Host(scenario) as host:
        started = time.perf_counter()
        assert host.run()
        wall = time.perf_counter() - started
        vm = host.vms[-1]
        statistics = host.final_statistics(vm)
        assert vm.outcome is not None
        return Result(
            vm.outcome.virtual_seconds, wall, statistics.stall_ns / 1e9, statistics.swap_reads
        )


def main() -> None:
    print("A guest of 48 MiB that works on 60 %, alone, and beside an idle one on 48 MiB for both")
    append = _WORKLOAD
    for paging in ("shadow", "nested"):
        run("96M", paging, "workload=fill percent=10")  # compile
        alone = run("96M", paging, append)
        tight = run("48M", paging, append, _NEIGHBOUR)
        print(
            f"  {paging:<7} alone {alone.virtual:6.3f} s virtual {alone.wall:6.2f} s wall   "
            f"2 x {tight.virtual:6.3f} s virtual {tight.wall:6.2f} s wall   "
            f"{tight.virtual / alone.virtual:5.2f} x, {tight.reads:,} pages read back"
        )
