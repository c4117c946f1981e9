# SPDX-License-Identifier: Apache-2.0
"""Which pages to swap: random ones, as ESXi does, or those seen idle first (a second chance).

Two guests, each alone on a host with about half of its memory: one works on a quarter of it while
the rest has been written and is not used any more; the other uses more than fits, uniformly, where
no choice can be better than another. Reads from swap and virtual time waited, in one run.
"""

from __future__ import annotations

from memvirt.host.host import Host
from memvirt.scenario.scenario import parse_scenario

_HOT_AND_COLD = """
[[vm]]
name = "hot-and-cold"
memory = "48M"
append = "workload=random percent=25 operations=4000000 used=1 balloon=0"
"""
_UNIFORM = """
[[vm]]
name = "uniform"
memory = "48M"
append = "workload=random percent=60 operations=150000 balloon=0"
"""


def run(vms: str, machine: str, victims: str) -> tuple[int, float, float]:
    """(pages read back, virtual seconds waited, virtual seconds in all)."""
    scenario = parse_scenario(
        f"""
        seed = 3
        [machine]
        memory = "{machine}"
        quantum_ms = 2
        Mem.ShareScanTime = 0
        Mem.MemZipEnable = false
        Mem.AllocGuestLargePage = false
        Mem.SwapVictims = "{victims}"
        Mem.SamplePeriod = 0.05
        Mem.BalancePeriod = 0.05
        {vms}
        """,
        "bench",
    )
    with Host(scenario) as host:
        assert host.run()
        statistics = [host.final_statistics(vm) for vm in host.vms]
        waited = sum(s.stall_ns for s in statistics) / 1e9
        virtual = sum(vm.outcome.virtual_seconds for vm in host.vms if vm.outcome)
        return sum(s.swap_reads for s in statistics), waited, virtual


def main() -> None:
    print("Choice of the pages to swap: random (ESXi) and idle first")
    for name, vms, machine in (
        ("hot and cold", _HOT_AND_COLD, "24M"),
        ("uniform access", _UNIFORM, "28M"),
    ):
        random = run(vms, machine, "random")
        idle = run(vms, machine, "idle")
        print(
            f"  {name:<18} random {random[0]:8,} reads {random[1]:6.3f} s waited   "
            f"idle {idle[0]:8,} reads {idle[1]:6.3f} s waited   "
            f"{random[0] / max(idle[0], 1):5.2f} x fewer reads"
        )
