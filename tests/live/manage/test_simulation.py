# SPDX-License-Identifier: Apache-2.0
"""``memvirt run HOST.toml`` tells beforehand what ``memvirt manage HOST.toml`` comes to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memvirt.cli.manage import host_plan
from memvirt.host.host import Host
from memvirt.live.manage.ledger import Ledger
from memvirt.live.manage.manager import Manager
from memvirt.scenario.scenario import parse_scenario
from memvirt.vmkernel.events import Mechanism
from memvirt.vmkernel.managed import ManagedVm
from memvirt.vmkernel.samples import Sample, VmMemory

from .model import ModelHost, ModelVm

HOST = """
seed = 3
check = false
[machine]
memory = "30M"
quantum_ms = 2
Mem.SamplePeriod = 0.02
Mem.BalancePeriod = 0.02
Mem.ShareScanTime = 0
Mem.SwapReadUs = 5
Mem.AllocGuestLargePage = false
Mem.Reclaim = ["swap"]
[live]
scan_percent = 100
[[vm]]
name = "busy"
memory = "16M"
shares = 4000
append = "workload=random percent=80 operations=2000000000"
[[vm]]
name = "idle"
memory = "16M"
shares = 4000
append = "workload=idle percent=85 ticks=1000000"
[[vm]]
name = "poor"
memory = "16M"
shares = 500
reservation = "9M"
append = "workload=random percent=80 operations=2000000000"
"""
PAGES = 16 << 8
SECONDS = 0.4  # of virtual time, until it has settled
STEPS = 200


def simulated() -> Sample:
    with Host(parse_scenario(HOST, "host.toml")) as host:
        while host.kernel.time_ns < SECONDS * 1e9:
            host.step()
        return host.sample()


class Managed:
    """The same file, of VMs that another kernel runs; they have the activity of the simulated."""

    def __init__(self, directory: Path, like: Sample) -> None:
        own = like.host.vmkernel // len(like.vms)
        self.models = [
            ModelVm(vm.name, vm.vm_id, PAGES, None, vm.active_percent / 100, vm.overhead + own)
            for vm in like.vms
        ]
        host = ModelHost(self.models)
        random = np.random.default_rng(1)
        with host.in_place(), Ledger(directory) as ledger:
            plan = host_plan(parse_scenario(HOST, "host.toml"))
            with Manager(plan, ledger, **host.sources()) as manager:
                for model in self.models:
                    model.touch(0, PAGES * 95 // 100)
                for step in range(STEPS):
                    host.seconds = step * 0.1
                    before = [model.resident for model in self.models]
                    manager.step()
                    self._spares_reservations(manager.kernel.vms, before)
                    for model in self.models:
                        # It works on, on random pages of its active part.
                        part = round(PAGES * 0.8 * model.active)
                        for page in random.integers(0, part, part // 20):
                            model.touch(page, page + 1)
                self.vms = {vm.name: vm for vm in manager.kernel.vms}
                self.events = list(manager.kernel.events)

    def _spares_reservations(self, vms: list[ManagedVm], before: list[int]) -> None:
        for vm, model, pages in zip(vms, self.models, before, strict=False):
            if model.resident < pages:
                assert model.resident - model.overhead >= vm.settings.reservation


def test_three_vms_come_to_what_the_simulation_says(tmp_path: Path) -> None:
    sample = simulated()
    told: dict[str, VmMemory] = {vm.name: vm for vm in sample.vms}
    managed = Managed(tmp_path, sample)
    for name, vm in managed.vms.items():
        assert vm.target == pytest.approx(told[name].target, rel=0.03), name
        assert vm.usage.consumed <= vm.target * 1.1, name
    # Equal shares: the idle one is taxed. The poor one keeps its reservation, and no more.
    assert managed.vms["idle"].target < managed.vms["busy"].target / 2.5
    assert told["idle"].target < told["busy"].target / 2.5
    assert managed.vms["poor"].target == told["poor"].target == 9 << 8
    swapped = {event.vm for event in managed.events if event.mechanism == Mechanism.SWAP}
    assert "idle" in swapped
