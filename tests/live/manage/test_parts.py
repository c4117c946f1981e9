# SPDX-License-Identifier: Apache-2.0
"""The parts of managing live VMs, each by itself, with clocks and kernels of the test's own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from memvirt.cli.main import app
from memvirt.cli.manage import host_plan
from memvirt.live.command_line import parse_command_line
from memvirt.live.discovery import DiscoveredVm, UnixAddress
from memvirt.live.errors import KernelFeatureMissing, LiveError
from memvirt.live.host_memory import HostPages
from memvirt.live.manage.balloon import LiveBalloon
from memvirt.live.manage.cgroup import MemoryCgroup
from memvirt.live.manage.host_plan import VmSelector
from memvirt.live.manage.ksm_control import KsmControl
from memvirt.live.manage.ledger import AlreadyManaged, Ledger, start_time
from memvirt.live.manage.live_machine import LiveMachine
from memvirt.live.manage.pageout import _after, _batches
from memvirt.live.manage.restore import restore_all
from memvirt.live.manage.sampling import VmSampling
from memvirt.live.working_set import WatchedPages
from memvirt.scenario.scenario import ScenarioError, parse_scenario
from memvirt.vmkernel.activity import Activity
from memvirt.vmkernel.options import MemoryOptions
from memvirt.vmkernel.samples import HostState
from memvirt.vmkernel.vmkernel import VmKernel

# The balloon ------------------------------------------------------------------------------------


def test_a_balloon_that_follows_has_not_stopped_short() -> None:
    balloon = LiveBalloon(patience=10, retry=100)
    balloon.seen(0, 0)
    balloon.target = 10_000
    assert balloon.wanted == 10_000
    balloon.told(10_000, 1)
    assert balloon.wanted is None
    for second in range(1, 60):
        balloon.seen(min(200 * second, 10_000), second)
        assert not balloon.stops_short(second)
    assert balloon.ceiling is None


def test_a_balloon_without_a_driver_stops_short_and_is_tried_again_later() -> None:
    balloon = LiveBalloon(patience=10, retry=100)
    balloon.seen(0, 0)
    balloon.target = 10_000
    balloon.told(10_000, 0)
    balloon.seen(0, 9)
    assert not balloon.stops_short(9)
    balloon.seen(0, 10)
    assert balloon.stops_short(10)
    assert (balloon.ceiling, balloon.target, balloon.wanted) == (0, 0, 0)
    balloon.told(0, 10)
    assert not balloon.stops_short(50)
    balloon.seen(0, 109)
    assert balloon.ceiling == 0
    balloon.seen(0, 110)
    assert balloon.ceiling is None


def test_a_guest_that_takes_its_memory_back_has_stopped_short() -> None:
    balloon = LiveBalloon(patience=10, retry=100)
    balloon.seen(5000, 0)
    assert balloon.target == 5000  # as somebody left it
    balloon.seen(1000, 5)
    assert not balloon.stops_short(9)
    assert balloon.stops_short(15)
    assert balloon.target == 1000


def test_a_monitor_that_does_not_answer_is_no_balloon_that_stops() -> None:
    balloon = LiveBalloon(patience=10, retry=100)
    balloon.seen(0, 0)
    balloon.lost()
    assert not balloon.connected
    balloon.seen(0, 1)
    assert balloon.connected


# Sampling ---------------------------------------------------------------------------------------


def watched(known: list[bool], touched: list[bool], error: str = "") -> WatchedPages:
    return WatchedPages("vm", np.array(known, np.bool_), np.array(touched, np.bool_), error)


def test_nothing_is_known_before_a_round_has_ended_or_when_it_failed() -> None:
    sampling, pages = VmSampling(SimpleNamespace()), np.arange(4)  # type: ignore[arg-type]
    sampling.begin_sample(pages)
    drawn, sampling.drawn = sampling.drawn, None
    assert sampling.untouched(pages) is None
    sampling.ended(drawn, watched([], [], "DAMON gave no answer"))
    assert sampling.untouched(pages) is None
    assert sampling.error == "DAMON gave no answer"
    sampling.ended(drawn, watched([True, False, False, False], [False] * 4))
    assert sampling.untouched(pages) is None
    assert "only 1 could be watched" in sampling.error
    sampling.ended(drawn, watched([True, True, True, False], [True, False, False, False]))
    assert list(sampling.untouched(pages)) == [False, True, True, False]  # type: ignore[arg-type]
    sampling.begin_sample(np.arange(1, 5))
    assert sampling.untouched(np.arange(1, 5)) is None


def test_a_failed_sample_is_not_idle() -> None:
    """The VMkernel keeps what it knew, and after the third failure takes the VM for active."""
    answers: list[float | None] = []

    class Sampling(VmSampling):
        def untouched(self, ppns: Any) -> Any:
            part = answers[-1]
            return None if part is None else np.arange(len(ppns)) >= part * len(ppns)

    guest = SimpleNamespace(pages=1000, sampling=Sampling(SimpleNamespace()))  # type: ignore[arg-type]
    activity = Activity(guest, 100, np.random.default_rng(1))  # type: ignore[arg-type]
    for answer in (0.1, 0.1, None, None):
        answers.append(answer)
        activity.end_period()
    assert activity.estimate == pytest.approx(0.1)
    answers.append(None)
    activity.end_period()
    assert activity.estimate == 1
    answers.append(0.2)
    activity.end_period()
    assert activity.estimate == pytest.approx(0.2)


# The record of changes --------------------------------------------------------------------------


def test_the_ledger_survives_its_process_and_belongs_to_one(tmp_path: Path) -> None:
    file = tmp_path / "pages_to_scan"
    file.write_text("100\n")
    with Ledger(tmp_path) as ledger:
        with pytest.raises(AlreadyManaged, match="another memvirt manage is running"):
            Ledger(tmp_path)
        ledger.change_setting(file, "500")
        ledger.change_setting(file, "700")
        record = ledger.vm(os.getpid(), start_time(os.getpid()))
        record.name, record.balloon = "vm", 123 << 20
        ledger.save()
    with Ledger(tmp_path) as ledger:
        assert ledger.record.settings == {str(file): "100"}
        assert ledger.vm(os.getpid(), start_time(os.getpid())).balloon == 123 << 20
        said: list[str] = []
        assert restore_all(ledger, said.append)  # this process is no VM any more
        assert ledger.record.empty
    assert file.read_text() == "100"
    assert said == [f"{file}: 100 again", "vm: has ended"]
    assert not (tmp_path / "changes.json").exists()


def test_what_cannot_be_put_back_stays_on_record(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("0")
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.change_setting(file, "1")
        file.unlink()
        file.mkdir()
        said: list[str] = []
        assert not restore_all(ledger, said.append)
        assert "cannot be set back to 0" in said[0]
        assert ledger.record.settings == {str(file): "0"}


def test_a_record_of_an_earlier_boot_is_void_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    record = {"format": 1, "boot": "another", "vms": [], "settings": {"/nowhere": "1"}}
    (tmp_path / "changes.json").write_text(json.dumps(record))
    with Ledger(tmp_path) as ledger:
        assert ledger.record.empty
    (tmp_path / "changes.json").write_text("{")
    with pytest.raises(LiveError, match=r"changes\.json: damaged"):
        Ledger(tmp_path)


# The host ---------------------------------------------------------------------------------------


def pages(total: int, available: int) -> HostPages:
    return HostPages(total, available, available, 0, 0, None, None)


def control_group(root: Path, **files: str) -> None:
    root.mkdir(parents=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)


def test_free_memory_is_the_least_of_budget_host_and_group(tmp_path: Path) -> None:
    control_group(
        tmp_path / "machine.slice", memory__current=f"{600 << 12}", memory__max=f"{700 << 12}",
        memory__stat=f"anon 1\ninactive_file {50 << 12}\n",
    )  # fmt: skip
    now = pages(10_000, 5000)
    machine = LiveMachine(4000, host_pages=lambda: now)
    machine.update(used=1500)
    assert (machine.frames, machine.free_frames) == (4000, 2500)
    now = pages(10_000, 900)
    machine.update(used=1500)
    assert machine.free_frames == 900
    group = MemoryCgroup("machine.slice", tmp_path)
    machine = LiveMachine(4000, cgroup=group, host_pages=lambda: now)
    machine.update(used=100)
    assert (machine.frames, machine.free_frames) == (700, 150)
    machine.update(used=5000)
    assert machine.free_frames == 0


def test_control_groups_of_both_versions(tmp_path: Path) -> None:
    control_group(tmp_path / "memory" / "old", **{
        "memory__usage_in_bytes": f"{8 << 12}", "memory__limit_in_bytes": str(0x7FFFFFFFFFFFF000),
        "memory__stat": "total_inactive_file 0\n",
    })  # fmt: skip
    old = MemoryCgroup("/old", tmp_path)
    assert (old.version, old.limit, old.room()) == (1, None, None)
    assert old.protection.name == "memory.soft_limit_in_bytes"
    with pytest.raises(KernelFeatureMissing, match="control group none: neither"):
        MemoryCgroup("none", tmp_path)


def test_advice_goes_in_batches_and_on_behind_what_was_done() -> None:
    runs = [(0, 100 << 20), (1 << 40, 4096)]
    batches = list(_batches(runs))
    assert batches == [[(0, 64 << 20)], [(64 << 20, 36 << 20), (1 << 40, 4096)]]
    assert len(list(_batches([(i << 13, 4096) for i in range(2049)]))) == 3
    assert _after([(0, 8192), (1 << 20, 4096)], 4096) == [(4096, 4096), (1 << 20, 4096)]
    assert _after([(0, 8192), (1 << 20, 4096)], 8192) == [(1 << 20, 4096)]
    assert _after([(0, 8192)], 8192) == []


# KSM --------------------------------------------------------------------------------------------


def ksm_files(directory: Path) -> Path:
    directory.mkdir()
    for name, value in (("run", 0), ("pages_to_scan", 100), ("sleep_millisecs", 20),
                        ("pages_shared", 0), ("pages_sharing", 0)):  # fmt: skip
        (directory / name).write_text(str(value))
    return directory


def merging(number: int, merge: bool = True) -> Any:
    block = SimpleNamespace(ksm_can_merge=merge)
    layout = SimpleNamespace(blocks=[block])
    return SimpleNamespace(
        name=f"vm{number}", vm_id=number, pages=60_000, vm=SimpleNamespace(layout=layout)
    )


@pytest.mark.parametrize(
    ("groups", "merges", "salting", "allowed", "why"),
    [
        (["a", "a"], [True, True], 2, True, "KSM on"),
        (["a", "b"], [True, True], 2, False, "vm1 and vm2 may not share"),
        (["", ""], [True, True], 2, False, "vm1 and vm2 may not share"),
        (["", ""], [True, True], 1, True, "KSM on"),
        (["a", "b"], [True, False], 2, True, "KSM on"),
        (["a", "b"], [False, False], 2, False, "no managed VM has memory that KSM merges"),
        (["a", "b"], [True, True], 0, True, "KSM on"),
    ],
)
def test_ksm_is_switched_on_only_where_salts_are_kept(
    tmp_path: Path, groups: list[str], merges: list[bool], salting: int, allowed: bool, why: str
) -> None:
    directory, said = ksm_files(tmp_path / "ksm"), []
    machine = LiveMachine(1 << 20, host_pages=lambda: pages(1 << 20, 1 << 20))
    kernel = VmKernel(machine, MemoryOptions(ShareForceSalting=salting))  # type: ignore[call-arg]
    guests = [merging(number, merge) for number, merge in enumerate(merges, 1)]
    kernel.vms += [
        SimpleNamespace(guest=guest, settings=SimpleNamespace(group=group))  # type: ignore[misc]
        for guest, group in zip(guests, groups, strict=True)
    ]
    with Ledger(tmp_path / "ledger") as ledger:
        control = KsmControl(
            kernel, ledger, lambda name, text: said.append(text), dry_run=False, wanted=True,
            directory=directory,
        )  # fmt: skip
        control.update(guests, [])
        control.adjust(HostState.HIGH)
        assert (directory / "run").read_text() == ("1" if allowed else "0")
        assert why in said[-1]
        slow = int((directory / "pages_to_scan").read_text())
        control.adjust(HostState.SOFT)
        if allowed:
            assert int((directory / "pages_to_scan").read_text()) > slow
        restore_all(ledger, lambda line: None)
    assert [(directory / name).read_text() for name in ("run", "pages_to_scan")] == ["0", "100"]


# Finding VMs, and the file ------------------------------------------------------------------------


def discovered(name: str, *arguments: str, qmp: str = "") -> DiscoveredVm:
    line = parse_command_line(["qemu-system-x86_64", "-name", name, *arguments])
    monitors = (UnixAddress(qmp),) if qmp else ()
    return DiscoveredVm(7, name, "qemu-system-x86_64", "", line, monitors, "", "")


def test_vms_are_found_by_name_socket_or_pattern() -> None:
    vm = discovered("web", "-m", "4G", "-uuid", "12", qmp="/run/web.qmp")
    assert VmSelector("web").fits(vm)
    assert not VmSelector("db").fits(vm)
    assert VmSelector("db", qmp="/run/../run/web.qmp").fits(vm)
    assert not VmSelector("web", qmp="/run/db.qmp").fits(vm)
    assert VmSelector("db", command_line=r"-m 4G -uuid \d+").fits(vm)
    assert not VmSelector("db", qmp="/run/web.qmp", command_line="-m 8G").fits(vm)
    assert not VmSelector("web", domain="web").fits(vm)


HOST = """
[machine]
memory = "1G"
Mem.IdleTax = 50
[live]
interval = 2
[[vm]]
name = "web"
memory = "512M"
shares = "high"
reservation = "128M"
limit = "256M"
live.qmp = "/run/web.qmp"
"""


def test_a_host_file_is_a_scenario() -> None:
    plan = host_plan(parse_scenario(HOST, "host.toml"))
    (vm,) = plan.vms
    assert (plan.memory, plan.interval, plan.options.idle_tax) == (262_144, 2, 50)
    assert (vm.settings.memory, vm.settings.shares) == (131_072, 512 * 20)
    assert (vm.settings.reservation, vm.settings.limit) == (32_768, 65_536)
    assert vm.selector == VmSelector("web", "/run/web.qmp")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("interval = 2", "intervall = 2", 'host.toml:6: unknown key "live.intervall" (did you'),
        ("live.qmp", "live.qpm", 'unknown key "vm.live.qpm" (did you mean "qmp"?)'),
        ('live.qmp = "/run/web.qmp"', 'live.command_line = "("', "should be a regular expression"),
        ("interval = 2", "interval = 0", "greater than or equal to 0.1"),
    ],
)
def test_mistakes_in_a_host_file_are_explained(old: str, new: str, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(HOST.replace(old, new), "host.toml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "manage takes a HOST.toml, or --restore"),
        (["--restore", "--dry-run"], "--restore takes no HOST.toml and no other option"),
        (["/nowhere.toml"], "/nowhere.toml: cannot be read"),
    ],
)
def test_mistakes_of_the_command_are_one_line(words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["manage", *words])
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="managing needs root")
def test_reservations_that_cannot_be_had_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMVIRT_MANAGE_DIR", str(tmp_path / "ledger"))
    file = tmp_path / "host.toml"
    file.write_text(
        HOST.replace('memory = "1G"', 'memory = "100M"').replace(
            "[live]", "[live]\nworking_set='off'"
        )
    )
    done = CliRunner().invoke(app, ["manage", str(file), "--seconds", "1"])
    assert done.exit_code == 2
    assert "reservations are 32768 pages" in done.stderr
