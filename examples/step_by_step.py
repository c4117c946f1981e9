# SPDX-License-Identifier: Apache-2.0
"""A host driven by hand: one round at a time, looking, and changing what VMs are granted.

Two guests share a host that has memory for little more than one of them. Half-way the second one
is given four times the shares of the first, and the first a limit; later the first is paused for a
while. Every decision of the VMkernel is printed as it is made.

    python examples/step_by_step.py
"""

from __future__ import annotations

from memvirt.host.host import Host
from memvirt.scenario.scenario import parse_scenario
from memvirt.vmkernel.events import Event

SCENARIO = """
seed = 1
[machine]
memory = "32M"
quantum_ms = 5
Mem.ShareScanTime = 0
Mem.SamplePeriod = 0.05
Mem.BalancePeriod = 0.05

[[vm]]
name = "first"
memory = "24M"
append = "workload=random percent=60 operations=2500000 balloon=0"

[[vm]]
name = "second"
memory = "24M"
append = "workload=idle percent=70 ticks=40 balloon=0"
"""


def show(event: Event) -> None:
    """A line for each decision that is worth one."""
    if event.mechanism in ("target", "settings", "pause", "resume"):
        print(f"{event.time_ns / 1e9:7.3f} s  {event.vm:<7} {event.mechanism:<9} {event.reason}")


def run_until(host: Host, seconds: float) -> None:
    """Rounds until so much virtual time has passed, or everything has ended."""
    while host.kernel.time_ns < seconds * 1e9 and host.step():
        pass


def look(host: Host) -> None:
    """What each VM has now."""
    for vm in host.sample().vms:
        print(
            f"           {vm.name:<7} {vm.condition}: {vm.consumed / 256:.1f} MiB of machine memory"
        )


def main() -> bool:
    """True if both guests verified their memory."""
    with Host(parse_scenario(SCENARIO, "step_by_step")) as host:
        host.events.subscribe(show)
        run_until(host, 0.08)
        look(host)
        first, second = host.control("first"), host.control("second")
        second.change(shares=960, reason="the second matters more")
        first.change(limit="20M", reason="and the first has enough with less")
        run_until(host, 0.12)
        look(host)
        first.pause(reason="let the other finish")
        run_until(host, 0.15)
        look(host)
        first.resume()
        while host.step():
            pass
        return host.succeeded


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
