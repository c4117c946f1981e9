# SPDX-License-Identifier: Apache-2.0
"""``memvirt manage`` on real QEMU processes: dry run, balloons, swap, and everything put back."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from memvirt.cli.manage import host_plan
from memvirt.live.manage.ledger import Ledger
from memvirt.live.manage.manager import Manager
from memvirt.scenario.scenario import parse_scenario
from memvirt.vmkernel.events import Mechanism
from memvirt.vmkernel.managed import ManagedVm
from memvirt.vmkernel.samples import HostState
from tests.live.pager.qemu_guest import VerifyingVm
from tests.waiting import until

from .conftest import Command, StartVm, Watcher, actual, consumed, host_file

pytestmark = [pytest.mark.qemu, pytest.mark.host_wide]


def assert_first_balloon(text: str, vm: VerifyingVm) -> None:
    """Of all balloons, this VM's was the first to grow, and the reason says why."""
    first = re.search(r"^.* balloon +\+.*$", text, re.MULTILINE)
    assert first is not None
    wanted = r"state (soft|hard|low): \d+ pages wanted of VMs with a balloon driver"
    assert re.search(rf" s  {vm.name} +balloon +\+\S+ MiB  {wanted}$", first[0]), text


@pytest.mark.usefixtures("host_state", "ledger_directory")
def test_balloons_follow_and_everything_is_put_back(
    start_vm: StartVm, tmp_path: Path, ledger_directory: Path
) -> None:
    """Dry run first: it changes nothing and foretells whom it will meet; then a run, killed; then
    one that goes on and is ended by SIGTERM.

    How many pages are wanted in which state depends on what the guests use at the moment:
    test_dry_run.py compares that, on one measurement.
    """
    low, high = start_vm("low", used=48, churn=48), start_vm("high", used=48, churn=48)
    for vm in (low, high):
        vm.wait_until_ready()
        vm.wait_for_progress(("memory", "churn"))
    # QEMU gives no memory of its guests back: from now on they use this and more.
    budget = consumed(low) + consumed(high) + 2
    file = tmp_path / "host.toml"
    keys = [(low, "shares = 500"), (high, 'shares = 4000\nreservation = "96M"')]
    file.write_text(host_file(f"{budget}M", keys, "pageout = false"))
    events = tmp_path / "dry.jsonl"
    dry = Command(file, "--dry-run", "--events", str(events))
    try:
        dry.wait_for(r" balloon +\+")
    finally:
        assert dry.end(signal.SIGTERM) == 0, dry.text
    assert "dry run: nothing was changed" in dry.text
    assert_first_balloon(dry.text, low)
    assert (actual(low), actual(high)) == (192, 192)
    assert not (ledger_directory / "changes.json").exists()
    foretold = [json.loads(line) for line in events.read_text().splitlines()]
    assert any(event["mechanism"] == Mechanism.BALLOON for event in foretold)

    command = Command(file)
    try:
        command.wait_for(r" balloon +\+")
        assert_first_balloon(command.text, low)
        until(lambda: actual(low) != 192, "the guest gives memory up")
    finally:
        command.end(signal.SIGKILL)
    assert (ledger_directory / "changes.json").exists()
    assert actual(low) != 192  # nobody was there to put it back

    again = Command(file)
    try:
        again.wait_for("taken over from a manager that ended without a word")
    finally:
        assert again.end(signal.SIGTERM) == 0, again.text
    assert f"{low.name}: has its 192.0 MiB again" in again.text
    until(lambda: (actual(low), actual(high)) == (192, 192), "they have the last of it")
    assert not (ledger_directory / "changes.json").exists()
    for vm in (low, high):
        vm.wait_for_progress(("memory",))
        vm.assert_nothing_wrong()


@pytest.mark.acceptance
@pytest.mark.usefixtures("ledger_directory")
def test_pages_go_to_swap_of_who_has_too_much_and_come_back(
    start_vm: StartVm, tmp_path: Path, ledger_directory: Path, zram_swap: int
) -> None:
    """Three VMs of equal shares without balloons: the idle one is taxed, none is taken below its
    reservation, all verify their memory, and nothing is left in swap at the end."""
    idle, busy, reserved = (
        start_vm(name, used=64, churn=16) for name in ("idle", "busy", "reserved")
    )
    vms = (idle, busy, reserved)
    for vm in vms:
        vm.wait_until_ready()
        vm.wait_for_progress(("memory", "churn"))
    with idle.monitor() as monitor:
        monitor.execute("stop")
    before = {vm.name: consumed(vm) for vm in vms}
    keys = [(idle, ""), (busy, ""), (reserved, 'reservation = "192M"')]
    budget = sum(before.values()) + 160
    text = host_file(f"{budget}M", keys, "balloon = false").replace('"off"', '"auto"')
    text = text.replace("Mem.SamplePeriod = 4", "Mem.SamplePeriod = 2.5\nMem.MinFreePct = 20")
    plan = host_plan(parse_scenario(text, "host.toml"))
    with Ledger() as ledger:
        manager = Manager(plan, ledger, watcher=Watcher(idle))
        try:

            def managed(vm: VerifyingVm) -> ManagedVm:
                return next(entry for entry in manager.kernel.vms if entry.name == vm.name)

            def measured() -> bool:
                manager.step()
                return all(entry.activity.periods >= 2 for entry in manager.kernel.vms)

            until(measured, "working sets are known")
            assert managed(idle).activity.estimate < 0.05
            assert managed(busy).activity.estimate > managed(idle).activity.estimate + 0.1

            def taken() -> bool:
                manager.machine.update = less  # type: ignore[method-assign]
                manager.step()
                return managed(idle).usage.kept_in("swap").pages > 4000

            look = manager.machine.update

            def less(used: int) -> object:
                return look(used + (120 << 8))  # somebody else takes 120 MiB

            until(taken, "pages of the idle VM are in swap")
            assert manager.kernel.state.worst >= HostState.SOFT
            out = {vm.name: managed(vm).usage.kept_in("swap").pages for vm in vms}
            assert out[idle.name] > 2 * out[busy.name]
            assert out[reserved.name] == 0
            reasons = {e.reason for e in manager.kernel.events if e.mechanism == Mechanism.SWAP}
            assert reasons

            def more(used: int) -> object:
                return look(max(used - (200 << 8), 0))  # others need 200 MiB less than before

            manager.machine.update = more  # type: ignore[method-assign]

            def returned() -> bool:
                manager.step()
                return any(e.mechanism == Mechanism.RESTORE for e in manager.kernel.events)

            until(returned, "memory comes back when pressure is gone")
        finally:
            assert manager.close()
        assert ledger.record.empty
    with idle.monitor() as monitor:
        monitor.execute("cont")
    for vm in vms:
        vm.wait_for_progress(("memory",))
        vm.assert_nothing_wrong()
    assert not (ledger_directory / "changes.json").exists()
