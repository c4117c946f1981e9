# SPDX-License-Identifier: Apache-2.0
"""A dry run says what a run does: both on the same measurements, decision by decision."""

from __future__ import annotations

from pathlib import Path

import pytest

from memvirt.cli.manage import host_plan
from memvirt.live.manage.ledger import Ledger
from memvirt.live.manage.manager import Manager
from memvirt.scenario.scenario import parse_scenario
from memvirt.vmkernel.events import Event, Mechanism
from memvirt.vmkernel.samples import HostState

from .model import ModelHost, ModelVm

HOST = """
[machine]
memory = "700M"
Mem.SamplePeriod = 4
Mem.BalancePeriod = 2
[live]
interval = 1
scan_percent = 100
[[vm]]
name = "low"
memory = "256M"
shares = 500
[[vm]]
name = "high"
memory = "256M"
shares = 4000
reservation = "96M"
[[vm]]
name = "bare"
memory = "256M"
shares = 1000
"""
MIB = 256
# MiB that each VM has touched, at a second: memory gets short, then very short; QEMU itself takes
# part of it, and gives that back in the end.
GROWTH = {0: 150, 10: 190, 20: 212, 30: 235}
OVERHEAD = {0: 20, 24: 35, 60: 8}
SECONDS = 120


def vms() -> list[ModelVm]:
    return [
        ModelVm("low", 1, 256 * MIB, active=0.6),
        ModelVm("high", 2, 256 * MIB, active=0.9),
        ModelVm("bare", 3, 256 * MIB, gives=None, active=0.2),
    ]


def go_through(
    directory: Path, *, dry_run: bool, pageout: bool
) -> tuple[list[Event], set[HostState]]:
    """All decisions, and the states the host was in."""
    models = vms()
    host = ModelHost(models)
    text = HOST if pageout else HOST.replace("[live]", "[live]\npageout = false")
    states: set[HostState] = set()
    with host.in_place(), Ledger(directory) as ledger:
        sources = host.sources()
        used = None if dry_run else ledger
        manager = Manager(
            host_plan(parse_scenario(text, "host.toml")), used, dry_run=dry_run, **sources
        )
        touched = 0
        for second in range(SECONDS):
            host.seconds = float(second)
            end = GROWTH.get(second, touched // MIB) * MIB
            for vm in models:
                vm.touch(touched, end)
                vm.overhead = OVERHEAD.get(second, vm.overhead // MIB) * MIB
            touched = end
            manager.step()
            states.add(manager.kernel.state.state)
        events = list(manager.kernel.events)
        if dry_run:
            assert not any(vm.told for vm in models)
        assert manager.close()
    for vm in models:
        assert not vm.ballooned.any()
    return events, states


@pytest.mark.parametrize("pageout", [True, False])
def test_a_dry_run_decides_what_a_run_decides(tmp_path: Path, pageout: bool) -> None:
    foretold, states = go_through(tmp_path / "dry", dry_run=True, pageout=pageout)
    done, _ = go_through(tmp_path / "run", dry_run=False, pageout=pageout)
    assert foretold == done
    assert {HostState.HIGH, HostState.SOFT, HostState.HARD} <= states
    seen = {event.mechanism for event in done}
    wanted = {Mechanism.BALLOON, Mechanism.TARGET, Mechanism.STATE}
    assert wanted | ({Mechanism.SWAP, Mechanism.RESTORE} if pageout else set()) <= seen
