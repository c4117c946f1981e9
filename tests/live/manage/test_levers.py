# SPDX-License-Identifier: Apache-2.0
"""One lever after the other on real QEMU processes: KSM, a balloon that nobody moves, groups."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memvirt.cli.main import app
from memvirt.cli.manage import host_plan
from memvirt.live.discovery import find_vm
from memvirt.live.ksm import KSM_DIRECTORY, ksm_status
from memvirt.live.manage.cgroup import ROOT, MemoryCgroup
from memvirt.live.manage.ledger import Ledger
from memvirt.live.manage.manager import Manager
from memvirt.live.page_states import LivePageState
from memvirt.live.vm import LiveVm, open_kernel_pages
from memvirt.scenario.scenario import parse_scenario
from memvirt.vmkernel.events import Mechanism
from tests.live.pager.qemu_guest import VerifyingVm
from tests.waiting import until

from .conftest import Command, StartVm, actual, host_file

pytestmark = [pytest.mark.qemu, pytest.mark.host_wide]
PAGES = 192 << 8


def pages_in(vm: VerifyingVm, state: LivePageState) -> int:
    """Pages of the guest in a state, as the host's kernel has it."""
    kernel, problem = open_kernel_pages()
    assert kernel is not None, problem
    with kernel, LiveVm(find_vm(str(vm.pid))) as live:
        return int(live.page_states(kernel).where(state).size)


def ready(*vms: VerifyingVm) -> None:
    for vm in vms:
        vm.wait_until_ready()
        vm.wait_for_progress(("memory",))


def verified(*vms: VerifyingVm) -> None:
    for vm in vms:
        vm.wait_for_progress(("memory",))
        vm.assert_nothing_wrong()


@pytest.mark.usefixtures("host_state")
def test_ksm_is_switched_on_merges_and_is_as_it_was_after_a_kill(
    start_vm: StartVm, tmp_path: Path, ledger_directory: Path
) -> None:
    if ksm_status() is None:
        pytest.skip("this kernel has no KSM (CONFIG_KSM)")
    knobs = [KSM_DIRECTORY / name for name in ("run", "pages_to_scan", "sleep_millisecs")]
    before = [knob.read_text() for knob in knobs]
    vms = [start_vm(name, used=32, churn=0) for name in ("first", "second")]
    ready(*vms)
    file = tmp_path / "host.toml"
    # Salting 0: other VMs of this host, which are nothing of this test's, may merge too.
    text = host_file("1G", [(vm, "") for vm in vms], "ksm = true\npageout = false")
    text = text.replace("[live]", "Mem.ShareForceSalting = 0\nMem.ShareScanTime = 0.05\n[live]")
    file.write_text(text)
    command = Command(file)
    try:
        command.wait_for(r"KSM on, \d+ pages/s")
        # Both run the same kernel: its text is found once.
        for vm in vms:
            until(lambda vm=vm: pages_in(vm, LivePageState.SHARED) > 1000, "merged pages")
        assert (KSM_DIRECTORY / "run").read_text().strip() == "1"
    finally:
        command.end(signal.SIGKILL)
    assert (KSM_DIRECTORY / "run").read_text().strip() == "1"  # nobody was there
    done = CliRunner().invoke(app, ["manage", "--restore"])
    assert done.exit_code == 0, done.output
    assert [knob.read_text() for knob in knobs] == before
    assert not (ledger_directory / "changes.json").exists()
    verified(*vms)


def test_a_guest_that_gives_nothing_loses_pages_to_swap_and_gets_them_back(
    start_vm: StartVm, ledger_directory: Path, zram_swap: int
) -> None:
    """The device is there, but no driver: only ``actual`` tells. State soft as long as it lasts."""
    deaf = start_vm("deaf", used=48, churn=16, more="module_blacklist=virtio_balloon")
    ready(deaf)
    text = host_file("300M", [(deaf, 'reservation = "32M"')], "balloon_patience = 5")
    seconds = 0.0
    with Ledger() as ledger:
        manager = Manager(
            host_plan(parse_scenario(text, "host.toml")), ledger, clock=lambda: seconds
        )
        try:
            look, frames = manager.machine.update, manager.machine.frames
            short = manager.kernel.state.border(50)  # soft is below 64, hard below 32

            def update(used: int) -> object:
                return look(frames - short)  # others have the rest, whatever this one gives

            manager.machine.update = update  # type: ignore[method-assign]
            reasons: list[str] = []

            def taken() -> bool:
                nonlocal seconds
                seconds += 1
                manager.step()
                reasons[:] = [e.reason for e in manager.kernel.events]
                return any(e.mechanism == Mechanism.SWAP for e in manager.kernel.events)

            until(taken, f"pages go to swap: {reasons}")
            events = list(manager.kernel.events)
            order = [
                next(number for number, event in enumerate(events) if part in event.reason)
                for part in (
                    "pages wanted of VMs with a balloon driver",
                    "balloon stopped short at 0 of",
                    "state soft: its balloon stopped short at 0 pages",
                )
            ]
            assert order == sorted(order)
            assert actual(deaf) == 192
            # By the event, not by a second look: the guest touches pages, and so fetches them.
            assert sum(e.pages for e in events if e.mechanism == Mechanism.SWAP) > 0
            assert not any(e.mechanism == Mechanism.SWAP for e in events[: order[1]])
        finally:
            assert manager.close()
        assert ledger.record.empty
    verified(deaf)


@pytest.fixture
def group() -> Iterator[MemoryCgroup]:
    """A control group of the test's own, of the version that has the memory controller here."""
    name = f"memvirt-test-{os.getpid()}"
    unified = ROOT / "cgroup.subtree_control"
    if unified.exists() and "memory" in unified.read_text().split():
        directory = ROOT / name
    elif (ROOT / "memory" / "memory.usage_in_bytes").exists():
        directory = ROOT / "memory" / name
    else:
        pytest.skip("no control group has the memory controller here")
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"{directory}: {error.strerror}")

    def removed() -> bool:
        with contextlib.suppress(OSError):
            directory.rmdir()
        return not directory.exists()

    try:
        yield MemoryCgroup(name)
    finally:
        until(removed, f"{directory} is empty")


def test_pages_are_taken_through_the_kernels_own_control_group(
    group: MemoryCgroup, start_vm: StartVm, ledger_directory: Path, zram_swap: int
) -> None:
    """By ``memory.reclaim``, or by the limit of a group of version 1, which is as it was after."""
    no_balloon = "module_blacklist=virtio_balloon"
    vm = start_vm("grouped", used=48, churn=16, more=no_balloon, group=group.directory)
    try:
        ready(vm)
        limit = group.limit_file.read_text()
        keys = f'reservation = "32M"\nlive.cgroup = "{group.name}"'
        text = host_file("300M", [(vm, keys)], "balloon = false\npageout = false")
        seconds = 0.0
        with Ledger() as ledger:
            manager = Manager(
                host_plan(parse_scenario(text, "host.toml")), ledger, clock=lambda: seconds
            )
            try:
                look, frames = manager.machine.update, manager.machine.frames
                short = manager.kernel.state.border(20)  # hard is below 32
                manager.machine.update = lambda used: look(frames - short)  # type: ignore[method-assign]

                def taken() -> bool:
                    nonlocal seconds
                    seconds += 1
                    manager.step()
                    return any(e.mechanism == Mechanism.SWAP for e in manager.kernel.events)

                until(taken, "pages go to swap through the group")
                reasons = [event.reason for event in manager.kernel.events]
                lever = f"{(group.reclaim or group.limit_file).name} of {group.name}"
                assert f"levers: {lever}" in reasons
                assert any(reason.startswith(f"{lever}: ") for reason in reasons), reasons
                assert group.limit_file.read_text() == limit
            finally:
                assert manager.close()
            assert ledger.record.empty
        assert group.limit_file.read_text() == limit
        if group.version == 1:
            assert group.oom_control.read_text().startswith("oom_kill_disable 0\n")
        verified(vm)
    finally:
        vm.kill()


def test_a_control_group_bounds_memory_and_protects_a_reservation(
    group: MemoryCgroup, start_vm: StartVm, tmp_path: Path, ledger_directory: Path
) -> None:
    limit = group.directory / ("memory.max" if group.version == 2 else "memory.limit_in_bytes")
    limit.write_text(str(600 << 20))
    vm = start_vm("grouped", used=64, churn=0, group=group.directory)
    try:
        ready(vm)
        assert group.limit == 600 << 8
        # The guest's memory is its alone, and counts in its group, from its first page on.
        room = group.room()
        assert room is not None
        assert room <= (600 - 64) << 8
        file = tmp_path / "host.toml"
        keys = f'reservation = "100M"\nlive.cgroup = "{group.name}"'
        text = host_file("100G", [(vm, keys)], f'cgroup = "{group.name}"\npageout = false')
        file.write_text(text)
        before = group.protection.read_text()
        command = Command(file)
        try:
            command.wait_for(f"{group.protection.name}: {100 << 20}, its reservation")
            command.wait_for(r"state \w+, free \d+\.\d [KM]iB")  # of 100 GiB, without the group
            assert int(group.protection.read_text()) == 100 << 20
        finally:
            assert command.end(signal.SIGTERM) == 0, command.text
        assert group.protection.read_text() == before
        verified(vm)
    finally:
        vm.kill()
