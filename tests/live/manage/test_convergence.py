# SPDX-License-Identifier: Apache-2.0
"""Three VMs of QEMU under real pressure come to what a simulation of them says."""

from __future__ import annotations

from pathlib import Path

import pytest

from memvirt.cli.manage import host_plan
from memvirt.live.damon import Damon, DamonBusy
from memvirt.live.errors import KernelFeatureMissing
from memvirt.live.manage.host_plan import HostPlan
from memvirt.live.manage.ledger import Ledger
from memvirt.live.manage.manager import Manager
from memvirt.live.working_set import FrameWatcher
from memvirt.scenario.scenario import parse_scenario
from memvirt.vmkernel.managed import ManagedVm
from memvirt.vmkernel.samples import VmMemory
from memvirt.vmkernel.simulation import Simulation
from tests.live.pager.qemu_guest import VerifyingVm
from tests.waiting import until

from .conftest import StartVm, Watcher

pytestmark = [pytest.mark.qemu, pytest.mark.host_wide, pytest.mark.acceptance]

HOST = """
[machine]
memory = "800M"
Mem.MinFreePct = 2
Mem.SamplePeriod = 4
Mem.BalancePeriod = 2
Mem.ShareScanTime = 0
Mem.Reclaim = ["swap"]
[live]
interval = 0.3
scan_percent = 50
[[vm]]
name = "{}"
memory = "192M"
shares = 4000
[[vm]]
name = "{}"
memory = "192M"
shares = 4000
[[vm]]
name = "{}"
memory = "192M"
shares = 500
reservation = "64M"
"""
GUESTS = 200 << 8  # of that, pages for the guests; the rest is for QEMU itself, as admission has it
NEAR = 0.15  # what the guests do meanwhile is their own affair


def simulated(plan: HostPlan, like: list[ManagedVm], used: dict[str, int]) -> dict[str, VmMemory]:
    """The same VMs without processors: first they use what they used, then they are as active."""
    percent = plan.options.min_free_pct * plan.memory / GUESTS
    update = {"large_pages": False, "min_free_pct": percent}
    simulation = Simulation(GUESTS, plan.options.model_copy(update=update))
    for vm in like:
        simulation.power_on(vm.settings, active=used[vm.name] / vm.settings.memory)
    simulation.run(seconds=60)
    for guest, vm in zip(simulation.guests, like, strict=True):
        guest.active = vm.active
    simulation.run(seconds=600)
    return {vm.name: vm for vm in simulation.kernel.sample().vms}


@pytest.fixture(params=["known", "damon"])
def watching(request: pytest.FixtureRequest) -> str:
    """Working sets as the test knows them, or as DAMON sees them where it can be had."""
    if request.param == "damon":
        try:
            Damon().close()
        except (KernelFeatureMissing, DamonBusy) as error:
            pytest.skip(str(error))
    return str(request.param)


@pytest.mark.usefixtures("ledger_directory", "zram_swap")
def test_three_vms_of_qemu_come_to_what_the_simulation_says(
    watching: str, start_vm: StartVm, tmp_path: Path
) -> None:
    busy, idle = start_vm("busy", used=48, churn=0), start_vm("idle", used=48, churn=0)
    poor = start_vm("poor", used=32, churn=0)
    vms: list[VerifyingVm] = [busy, idle, poor]
    for vm in vms:
        vm.wait_until_ready()
        vm.wait_for_progress(("memory",))
    with idle.monitor() as monitor:
        monitor.execute("stop")
    plan = host_plan(parse_scenario(HOST.format(*(vm.name for vm in vms)), "host.toml"))
    watcher: FrameWatcher = Watcher(idle) if watching == "known" else Damon()
    with Ledger() as ledger:
        manager = Manager(plan, ledger, watcher=watcher)
        try:
            look = manager.machine.update

            def update(charged: int) -> object:
                own = sum(guest.overhead for guest in manager.guests.values())
                return look(charged - own + plan.memory - GUESTS)

            manager.machine.update = update  # type: ignore[method-assign]
            manager.step()
            managed = manager.kernel.vms
            assert len(managed) == len(vms), list(manager.kernel.events)
            used = {vm.name: round(vm.usage.consumed) for vm in managed}

            def measured() -> bool:
                manager.step()
                return all(vm.activity.periods >= 5 for vm in managed)

            until(measured, "working sets are known", 240)

            def settled() -> bool:
                manager.step()
                return all(_near(vm, told[vm.name]) for vm in managed)

            for _ in range(3):  # the activity of the busy ones is a sample, and changes
                told = simulated(plan, managed, used)
                try:
                    until(settled, "", 60)
                    break
                except AssertionError:
                    print([(vm.name, vm.usage.consumed, vm.target, vm.active) for vm in managed])
                    print([(vm.name, vm.consumed, vm.target) for vm in told.values()])
            else:
                pytest.fail("they do not come to the same")
            found = {vm.name: vm for vm in managed}
            assert found[idle.name].target < found[busy.name].target * 0.8  # of equal shares
            assert found[poor.name].usage.consumed >= (64 << 8) * 0.95
        finally:
            assert manager.close()
        assert ledger.record.empty
    with idle.monitor() as monitor:
        monitor.execute("cont")
    for vm in vms:
        vm.wait_for_progress(("memory",))
        vm.assert_nothing_wrong()


def _near(vm: ManagedVm, told: VmMemory) -> bool:
    return (
        abs(vm.target - told.target) <= NEAR * told.target
        and abs(vm.usage.consumed - told.consumed) <= NEAR * told.consumed
    )
