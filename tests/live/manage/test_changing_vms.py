# SPDX-License-Identifier: Apache-2.0
"""VMs that change while they are managed: migrated, grown, restarted, not to be asked; and deaths
of the manager at the worst moment. On VMs that are arrays."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memvirt.cli.manage import host_plan
from memvirt.live import vm as vm_module
from memvirt.live.command_line import parse_command_line
from memvirt.live.discovery import DiscoveredVm
from memvirt.live.errors import CommandError, ProcessGone
from memvirt.live.manage import eviction
from memvirt.live.manage.blocking import stop_or_continue
from memvirt.live.manage.ledger import Ledger, VmRecord
from memvirt.live.manage.manager import Manager
from memvirt.live.manage.restore import restore_all
from memvirt.live.page_states import LivePageState
from memvirt.live.process import Process
from memvirt.live.vm import LiveVm
from memvirt.scenario.scenario import parse_scenario
from memvirt.vmkernel.managed import Condition

from .model import ModelAdviser, ModelHost, ModelVm

MIB = 256
HOST = """
[machine]
memory = "240M"
Mem.BalancePeriod = 2
[live]
scan_percent = 100
pageout = {}
[[vm]]
name = "vm"
memory = "256M"
"""


class Managed:
    """One VM with more memory in use than there is. Without ``pageout`` its balloon is all."""

    def __init__(self, tmp_path: Path, gives: int | None = 1 << 30, pageout: bool = False) -> None:
        self.vm = ModelVm("vm", 4711, 256 * MIB, gives=gives, active=0.1, overhead=20 * MIB)
        self.vm.touch(0, 230 * MIB)
        self.host = ModelHost([self.vm])
        self.directory = tmp_path / "ledger"
        self.plan = host_plan(parse_scenario(HOST.format(str(pageout).lower()), "host.toml"))

    def manager(self, ledger: Ledger) -> Manager:
        return Manager(self.plan, ledger, **self.host.sources())

    def steps(self, manager: Manager, count: int = 6) -> None:
        for _ in range(count):
            self.host.seconds += 1
            manager.step()

    def reasons(self, manager: Manager) -> list[str]:
        return [event.reason for event in manager.kernel.events]


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[Managed]:
    managed = Managed(tmp_path)
    with managed.host.in_place():
        yield managed


@pytest.mark.parametrize(
    ("state", "status", "why"),
    [("", "active", "it is being migrated to another host (active)"),
     ("paused", "postcopy-active", "it is being migrated to another host (postcopy-active)"),
     ("postmigrate", "completed", "it has migrated to another host, its balloon with it")],
)  # fmt: skip
def test_a_vm_that_migrates_is_left_alone(
    managed: Managed, state: str, status: str, why: str
) -> None:
    vm = managed.vm
    with Ledger(managed.directory) as ledger:
        manager = managed.manager(ledger)
        managed.steps(manager, 3)
        assert vm.told
        vm.run_state, vm.migration = state, status
        told, swapped = list(vm.told), vm.count(LivePageState.SWAPPED)
        vm.touch(0, 250 * MIB)
        managed.steps(manager)
        assert (vm.told, vm.count(LivePageState.SWAPPED)) == (told, swapped)
        assert why in managed.reasons(manager)
        if state == "postmigrate":
            assert manager.close()
            assert vm.told == told  # the guest is elsewhere: there is nobody to tell
            assert any("has migrated to another host" in r for r in managed.reasons(manager))
        else:
            vm.run_state, vm.migration = "", "failed"
            managed.steps(manager)
            assert vm.told != told  # it stayed here, and is managed again
            assert manager.close()
            assert vm.told[-1] == 256 * MIB
        assert ledger.record.empty


def test_a_vm_that_waits_to_come_in_is_not_taken_before_it_has(managed: Managed) -> None:
    managed.vm.run_state = "inmigrate"
    with Ledger(managed.directory) as ledger:
        manager = managed.manager(ledger)
        managed.steps(manager)
        assert not manager.guests
        assert any("left alone: it waits for its memory" in r for r in managed.reasons(manager))
        managed.vm.run_state = ""
        managed.steps(manager, 20)
        assert set(manager.guests) == {"vm"}
        assert manager.close()


def test_memory_that_is_plugged_in_stops_its_levers_and_stays_the_guests(managed: Managed) -> None:
    vm = managed.vm
    with Ledger(managed.directory) as ledger:
        manager = managed.manager(ledger)
        managed.steps(manager, 3)
        told = list(vm.told)
        assert told[-1] < vm.pages
        vm.plugged = 64 * MIB
        managed.steps(manager)
        assert vm.told == told
        text = f"memory was plugged in or out ({vm.pages} to {vm.pages + vm.plugged} pages)"
        assert any(text in reason for reason in managed.reasons(manager))
        assert manager.guests["vm"].charged == vm.resident
        assert manager.close()
        # It had all of its memory, and has all that is there now.
        assert vm.told[-1] == vm.pages
        assert ledger.record.empty


def test_memory_that_was_plugged_in_and_out_again_is_looked_up_anew(tmp_path: Path) -> None:
    managed = Managed(tmp_path, pageout=True)
    vm: Any = managed.vm
    looked = []
    vm.refresh_layout = lambda: looked.append(True)
    with managed.host.in_place(), Ledger(managed.directory) as ledger:
        manager = managed.manager(ledger)
        managed.steps(manager, 3)
        vm.plugged = 64 * MIB
        managed.steps(manager, 1)
        assert manager.guests["vm"].reclaim is None
        vm.plugged = 0
        managed.steps(manager, 1)
        assert looked == [True]
        assert manager.guests["vm"].reclaim is not None
        assert manager.close()


def test_a_record_of_another_process_of_that_number_is_not_this_vms(managed: Managed) -> None:
    """QEMU has ended, and its process number is given away again: to a VM of the same name."""
    with Ledger(managed.directory) as ledger:
        old = VmRecord(managed.vm.pid, 99, "vm", balloon=1 << 20, stopped=True, paged_out=500)
        ledger.record.vms.append(old)
        ledger.save()
        manager = managed.manager(ledger)
        managed.vm.stopped = True  # by its user
        managed.steps(manager, 1)
        guest = manager.guests["vm"]
        assert guest.evictor.out == 0
        assert managed.vm.stopped
        assert not any("taken over" in reason for reason in managed.reasons(manager))
        manager.restore_others()  # it has ended
        assert old not in ledger.record.vms
        assert manager.close()


def test_pages_are_on_record_before_they_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    managed = Managed(tmp_path, gives=None, pageout=True)

    class Killed(BaseException):
        pass

    class Dying(ModelAdviser):
        def advise(self, runs: Any, advice: int) -> None:
            super().advise(runs, advice)
            raise Killed

    with managed.host.in_place(), Ledger(managed.directory) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(eviction, "Adviser", lambda process: Dying(managed.vm))
            manager = managed.manager(ledger)
            with pytest.raises(Killed):
                managed.steps(manager, 20)
        away = managed.vm.count(LivePageState.SWAPPED)
        assert away > 0
    with managed.host.in_place(), Ledger(managed.directory) as ledger:
        assert ledger.record.vms[0].paged_out >= away
        assert restore_all(ledger, lambda line: None, lambda seconds: None)
    assert managed.vm.count(LivePageState.SWAPPED) == 0


def test_what_cannot_be_put_on_record_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    managed = Managed(tmp_path, gives=None, pageout=True)

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(managed.directory))

    with managed.host.in_place(), Ledger(managed.directory) as ledger:
        manager = managed.manager(ledger)
        with monkeypatch.context() as patch:
            patch.setattr(ledger, "save", full)
            managed.steps(manager, 10)
            assert managed.vm.count(LivePageState.SWAPPED) == 0
            assert "No space left" in manager.guests["vm"].trouble
        managed.steps(manager, 10)
        assert managed.vm.count(LivePageState.SWAPPED) > 0
        assert manager.close()


def test_what_was_stopped_by_a_manager_that_died_goes_on_even_if_it_cannot_be_asked_at_once(
    managed: Managed,
) -> None:
    with Ledger(managed.directory) as ledger:
        record = ledger.vm(managed.vm.pid, 1)
        record.stopped = managed.vm.stopped = True
        ledger.save()
        managed.vm.state[60 * MIB :] = LivePageState.UNTOUCHED  # the shortage is over
        manager = managed.manager(ledger)
        managed.vm.unanswered.add("cont")
        managed.steps(manager, 2)
        assert managed.vm.stopped
        assert any("no answer within 5 s" in reason for reason in managed.reasons(manager))
        managed.vm.unanswered.clear()
        managed.steps(manager, 2)
        assert not managed.vm.stopped
        assert manager.close()


def test_that_a_vm_runs_again_is_on_record_although_its_balloon_cannot_be_asked(
    managed: Managed,
) -> None:
    """Whoever stops it after that is somebody else, and the next try leaves it stopped."""
    with Ledger(managed.directory) as ledger:
        record = ledger.vm(managed.vm.pid, 1)
        record.stopped = managed.vm.stopped = True
        record.balloon = 256 << 20
        ledger.save()
        managed.vm.unanswered.add("query-balloon")
        assert not restore_all(ledger, lambda line: None, lambda seconds: None)
        assert not managed.vm.stopped
        managed.vm.unanswered.clear()
    managed.vm.stopped = True
    with Ledger(managed.directory) as ledger:
        assert [vm.stopped for vm in ledger.record.vms] == [False]
        assert restore_all(ledger, lambda line: None, lambda seconds: None)
    assert managed.vm.stopped


def test_a_process_that_ends_while_it_is_opened_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Process] = []
    closed: list[Process] = []

    class Ended(Process):
        def __init__(self, pid: int) -> None:
            super().__init__(pid)
            opened.append(self)

        def start_time(self) -> int:
            raise ProcessGone(f"process {self.pid} is gone")

        def close(self) -> None:
            super().close()
            closed.append(self)

    monkeypatch.setattr(vm_module, "Process", Ended)
    command_line = parse_command_line(["qemu"])
    found = DiscoveredVm(os.getpid(), "vm", "qemu", "", command_line, (), "", "", started=1)
    with pytest.raises(ProcessGone):
        LiveVm(found)
    assert len(opened) == 1
    assert closed == opened


class Stoppable:
    """A guest for ``stop_or_continue``: what it was told, and a command it refuses."""

    name, vm_id, started = "vm", 4711, 1

    def __init__(self, run_state: str, refuses: str = "") -> None:
        self.run_state, self.refuses = run_state, refuses
        self.told: list[str] = []

    def execute(self, command: str) -> None:
        if command == self.refuses:
            raise CommandError(f"vm: {command}: not now", "GenericError")
        self.told.append(command)


def decide(guest: Stoppable, ledger: Ledger, condition: Condition) -> bool:
    """What is on record after one decision."""
    managed: Any = SimpleNamespace(condition=condition)
    stop_or_continue(guest, managed, ledger, allowed=True)  # type: ignore[arg-type]
    record = ledger.find(guest.vm_id, guest.started)
    return record is not None and record.stopped


def test_only_what_was_stopped_here_is_continued(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        running = Stoppable("running")
        assert decide(running, ledger, Condition.BLOCKED)
        assert running.told == ["stop"]
        assert not decide(Stoppable("running"), ledger, Condition.RUNNING)  # its user did it
        user = Stoppable("paused")
        assert not decide(user, ledger, Condition.BLOCKED)
        assert not decide(user, ledger, Condition.RUNNING)
        assert user.told == []
        refusing = Stoppable("running", refuses="stop")
        with pytest.raises(CommandError):
            decide(refusing, ledger, Condition.BLOCKED)
        refusing.run_state = "paused"
        assert not decide(refusing, ledger, Condition.RUNNING)
        assert refusing.told == []
        stopped = Stoppable("running")
        assert decide(stopped, ledger, Condition.BLOCKED)
        stopped.run_state = "unknown"  # cannot be asked: whether it runs is not known
        assert decide(stopped, ledger, Condition.RUNNING)
        stopped.run_state = "paused"
        assert not decide(stopped, ledger, Condition.RUNNING)
        assert stopped.told == ["stop", "cont"]


def test_a_process_that_ends_between_two_looks_is_let_go(managed: Managed) -> None:
    with Ledger(managed.directory) as ledger:
        manager = managed.manager(ledger)
        managed.steps(manager, 3)
        assert not ledger.record.empty

        def gone() -> None:
            raise ProcessGone("process 4711 is gone")

        managed.vm.process.require_alive = gone
        managed.host.vms.clear()
        managed.steps(manager, 6)
        assert not manager.guests
        assert ledger.record.empty
        assert manager.close()
