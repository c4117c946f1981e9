# SPDX-License-Identifier: Apache-2.0
"""Control groups as levers: what is asked of the kernel, in which order, and that it is put back.

The kernel of these tests is a directory that looks like control groups; test_levers.py has the
real one, of the version that this machine has.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memvirt.cli.manage import host_plan
from memvirt.live.errors import KernelFeatureMissing, LiveError
from memvirt.live.manage import group_reclaim
from memvirt.live.manage.cgroup import MemoryCgroup
from memvirt.live.manage.group_reclaim import GroupReclaim
from memvirt.live.manage.guest import LiveGuest
from memvirt.live.manage.ledger import Ledger
from memvirt.live.manage.manager import Manager
from memvirt.live.manage.protection import ReservationProtection
from memvirt.live.page_states import LivePageState
from memvirt.scenario.scenario import parse_scenario
from memvirt.vmkernel.events import Mechanism

from .model import ModelAdviser, ModelHost, ModelVm

MIB = 256


def plenty() -> int:
    """Pages of free swap."""
    return 1 << 20


def control_group(root: Path, name: str, pid: int | str, **files: object) -> MemoryCgroup:
    """A group of version 2 below ``root``; two underscores in a file's name are a dot."""
    directory = root / name
    directory.mkdir(parents=True)
    known = {"memory__current": 0, "memory__max": "max", "memory__low": 0, "memory__reclaim": "",
             "cgroup__procs": pid}  # fmt: skip
    for file, text in (known | files).items():
        (directory / file.replace("__", ".")).write_text(f"{text}\n")
    above = directory.parent
    if above != root and not (above / "memory.low").exists():
        (above / "memory.low").write_text("0\n")
    return MemoryCgroup(name, root)


class ModelKernel:
    """Carries ``memory.reclaim`` out on a VM that is an array; ``most`` pages in all, then EAGAIN.

    It takes the VM's first private pages, also those that advice does not move.
    """

    def __init__(self, vm: ModelVm, most: int = 1 << 30) -> None:
        self.vm, self.most, self.asked = vm, most, 0

    def write(self, file: Path, text: str) -> None:
        assert file.name == "memory.reclaim"
        pages = int(text) >> 12
        self.asked += pages
        taken = np.flatnonzero(self.vm.state == LivePageState.PRIVATE)[: min(pages, self.most)]
        self.vm.state[taken] = LivePageState.SWAPPED
        self.most -= taken.size
        if taken.size < pages:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


HOST = """
[machine]
memory = "240M"
Mem.BalancePeriod = 2
[live]
scan_percent = 100
{live}
[[vm]]
name = "vm"
memory = "256M"
reservation = "64M"
live.cgroup = "machine.slice/vm.scope"
"""


class Run:
    """A VM without a balloon that takes more memory than there is."""

    def __init__(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: str = "", kept: int = 0,
        most: int = 1 << 30, used: int = 250,
    ) -> None:  # fmt: skip
        self.vm = ModelVm("vm", 4711, 256 * MIB, gives=None, active=0.1, overhead=20 * MIB)
        self.vm.kept[: kept * MIB] = True
        self.kernel = ModelKernel(self.vm, most)
        monkeypatch.setattr(group_reclaim, "_write", self.kernel.write)
        self.group = control_group(tmp_path / "groups", "machine.slice/vm.scope", 4711)
        self.low, self.low_above = self.group.protection, *self.group.bounding_protections()
        host = ModelHost([self.vm])
        plan = host_plan(parse_scenario(HOST.format(live=live), "host.toml"))
        with host.in_place(), Ledger(tmp_path / "ledger") as ledger:
            manager = Manager(plan, ledger, cgroups=tmp_path / "groups", **host.sources())
            self.vm.touch(0, 60 * MIB)
            for second in range(60):
                host.seconds = float(second)
                manager.step()
                if second == 0:
                    self.protected = (self.low.read_text(), self.low_above.read_text())
                    self.vm.touch(0, used * MIB)
            self.events = list(manager.kernel.events)
            self.reasons = [event.reason for event in self.events]
            self.resident = self.vm.count(LivePageState.PRIVATE)
            assert manager.close()
            assert ledger.record.empty

    def swapped(self) -> int:
        return sum(event.pages for event in self.events if event.mechanism == Mechanism.SWAP)


def test_the_group_takes_what_advice_leaves_and_the_reservation_is_spared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, kept=256)
    levers = "levers: advice on single pages (MADV_PAGEOUT), memory.reclaim of"
    assert f"{levers} machine.slice/vm.scope" in run.reasons
    told = next(reason for reason in run.reasons if "asked for since advice left them; " in reason)
    assert told.startswith("memory.reclaim of machine.slice/vm.scope: ")
    assert run.kernel.asked > 0
    assert run.swapped() > 0
    assert run.resident >= 64 * MIB
    assert run.protected == (str(64 << 20), str(64 << 20))
    assert (run.low.read_text().strip(), run.low_above.read_text().strip()) == ("0", "0")


def test_advice_alone_where_it_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch)
    assert run.swapped() > 0
    assert run.kernel.asked == 0


@pytest.mark.parametrize(
    ("live", "asked"),
    [("pageout = false", True), ("cgroup_reclaim = false", False),
     ("pageout = false\ncgroup_reclaim = false", False)],
)  # fmt: skip
def test_levers_are_used_as_far_as_they_are_allowed(
    live: str, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, live, kept=256)
    assert bool(run.kernel.asked) == asked
    assert bool(run.swapped()) == asked
    if live == "pageout = false":
        assert any("asked for since pageout is off; " in reason for reason in run.reasons)


def test_the_group_gives_what_a_kernel_without_advice_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(adviser: ModelAdviser, runs: Any, advice: int) -> None:
        raise KernelFeatureMissing("this kernel has no process_madvise with MADV_PAGEOUT")

    monkeypatch.setattr(ModelAdviser, "advise", refuse)
    run = Run(tmp_path, monkeypatch)
    assert run.swapped() > 0
    assert run.kernel.asked >= run.swapped()


@pytest.mark.parametrize("seen", [True, False])
def test_what_advice_sent_away_before_it_failed_is_not_asked_of_the_group(
    seen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it cannot be seen how much that was, nothing is."""
    advise, rescan, failed = ModelAdviser.advise, LiveGuest.rescan, []

    def fails(adviser: ModelAdviser, runs: Any, advice: int) -> None:
        advise(adviser, runs, advice)
        failed.append(not seen)
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def look(guest: LiveGuest) -> None:
        if failed and failed[-1]:
            raise LiveError("its pagemap cannot be read")
        rescan(guest)

    monkeypatch.setattr(ModelAdviser, "advise", fails)
    monkeypatch.setattr(LiveGuest, "rescan", look)
    run = Run(tmp_path, monkeypatch)
    assert failed
    assert run.kernel.asked == 0
    assert bool(run.swapped()) == seen
    assert run.resident >= 64 * MIB


def test_a_group_that_gives_less_than_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, kept=256, most=100)
    assert run.swapped() == 100


@pytest.mark.parametrize("problem", ["another process", "another VM", "no file", "gone"])
def test_a_group_that_is_not_the_vms_is_no_lever(
    problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = control_group(tmp_path, "a/b", 4711)
    vm: Any = ModelVm("vm", 4711, 16)
    with Ledger(tmp_path / "ledger") as ledger:
        reclaim = GroupReclaim(group, vm.process, ledger, plenty)
        assert reclaim.impossible == ""
        procs = group.directory / "cgroup.procs"
        if problem == "another process":
            procs.write_text("12\n")
            assert reclaim.impossible == "control group a/b does not hold process 4711"
        elif problem == "another VM":
            below = group.directory / "libvirt" / "emulator"
            below.mkdir(parents=True)
            (below / "cgroup.procs").write_text("99\n100\n")
            # Groups of threads cannot be read.
            (group.directory / "libvirt" / "cgroup.procs").mkdir()
            # Nothing of the processes that have these numbers here is asked.
            monkeypatch.setattr(group_reclaim, "_resident_pages", lambda pid: 1)
            monkeypatch.setattr(group_reclaim, "runs_qemu", lambda pid: False)
            assert reclaim.impossible == ""  # helpers of its own
            monkeypatch.setattr(group_reclaim, "runs_qemu", lambda pid: pid == 99)
            assert reclaim.impossible == "control group a/b holds another VM, too (process 99)"
        elif problem == "no file":
            (group.directory / "memory.reclaim").unlink()
            assert reclaim.impossible == "control group a/b has no memory.reclaim (Linux 5.19)"
        else:
            procs.unlink()
            assert reclaim.impossible == "control group a/b: No such file or directory"


def test_a_group_with_processes_of_others_is_no_lever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = control_group(tmp_path, "system.slice", "4711\n99\n100\n")
    vm: Any = ModelVm("vm", 4711, 1024 * MIB, overhead=100 * MIB)
    theirs = {99: 2 * MIB, 100: 8 * MIB}
    monkeypatch.setattr(group_reclaim, "runs_qemu", lambda pid: False)
    monkeypatch.setattr(group_reclaim, "_resident_pages", lambda pid: theirs[pid])
    with Ledger(tmp_path / "ledger") as ledger:
        reclaim = GroupReclaim(group, vm.process, ledger, plenty)
        assert reclaim.impossible == ""
        theirs[100] += 1 * MIB
        assert reclaim.impossible == (
            "control group system.slice holds other processes, too: they have 11.0 MiB, the VM "
            "100.0 MiB; start the VM in a group of its own"
        )


def test_the_file_of_version_2_gets_parts_in_bytes(tmp_path: Path) -> None:
    group = control_group(tmp_path, "vm", 4711, memory__reclaim="x" * 40)
    vm: Any = ModelVm("vm", 4711, 16)
    with Ledger(tmp_path / "ledger") as ledger:
        GroupReclaim(group, vm.process, ledger, plenty).take(4096 + 10)
        assert group.reclaim is not None
        assert group.reclaim.read_text().startswith(f"{10 << 12}")  # after 16 MiB
        assert ledger.record.empty
    group.reclaim.write_text("untouched")
    GroupReclaim(group, vm.process, None, plenty).take(10)  # a dry run
    assert group.reclaim.read_text() == "untouched"


def test_protection_is_raised_above_the_vms_and_follows_them(tmp_path: Path) -> None:
    groups = {name: control_group(tmp_path, f"machine.slice/{name}", 1) for name in ("a", "b")}
    above = tmp_path / "machine.slice" / "memory.low"
    above.write_text(f"{1000 << 12}\n")  # somebody has said so already
    said: list[str] = []

    def lows() -> list[int]:
        files = (groups["a"].protection, groups["b"].protection, above)
        return [int(file.read_text()) >> 12 for file in files]

    with Ledger(tmp_path / "ledger") as ledger:
        protection = ReservationProtection(ledger, lambda name, text: said.append(text))
        protection.update({"a": (groups["a"], 600)})
        assert lows() == [600, 0, 1000]
        protection.update({"a": (groups["a"], 600), "b": (groups["b"], 900)})
        assert lows() == [600, 900, 1500]
        assert said[-1].endswith(f"{900 << 12}, its reservation")
        protection.update({"b": (groups["b"], 900)})
        assert lows() == [0, 900, 1000]
        protection.update({})
        assert lows() == [0, 0, 1000]
        assert ledger.record.empty
        protection.update({"a": (groups["a"], 0)})  # no reservation: left to its owner
        assert ledger.record.empty
