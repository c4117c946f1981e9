# SPDX-License-Identifier: Apache-2.0
"""What could not be measured is not acted upon: managers on recorded measurements.

Two VMs of equal shares, on a host that gets short of memory. What their samples said, round by
round, is a record; so a manager whose samples failed can be compared with one that knew.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memvirt.cli.manage import host_plan
from memvirt.live import damon, idle_pages, working_set
from memvirt.live.errors import AccessDenied
from memvirt.live.manage import manager as manager_module
from memvirt.live.manage.ledger import Ledger
from memvirt.live.manage.manager import MANAGE, Manager
from memvirt.live.manage.sampling import Sampler, open_sampler
from memvirt.live.page_states import LivePageState, PageStates
from memvirt.live.working_set import WatchedPages, WorkingSetWay, choose_watcher
from memvirt.scenario.scenario import parse_scenario
from memvirt.vmkernel.events import Event

from .model import ModelHost, ModelSampler, ModelVm

MIB = 256
HOST = """
[machine]
memory = "300M"
Mem.SamplePeriod = 4
Mem.BalancePeriod = 2
[live]
interval = 1
scan_percent = 100
working_set = "{}"
[[vm]]
name = "known"
memory = "192M"
[[vm]]
name = "other"
memory = "192M"
"""
SECONDS = 60

# What a round may say of a sample: the part that was touched of what is known, or why not, or the
# part of which nothing is known.
IDLE, BUSY = 0.05, 1.0
NO_ANSWER = "DAMON gave no answer: [Errno 16] Device or resource busy"
GONE = "process 4712 is gone"
HALF_KNOWN = -0.4  # of 40 % it is known that they were not touched, of the rest nothing
Round = float | str


class Recorded(ModelSampler):
    """Samples end as the records say, by VM; after the last round they all end like that one."""

    def __init__(self, records: dict[str, Sequence[Round]]) -> None:
        super().__init__()
        self._records = {name: list(rounds) for name, rounds in records.items()}

    def begin(self) -> None:
        for sampling in self.samplings:
            if sampling.drawn is None:
                continue
            pages, sampling.drawn = sampling.drawn, None
            rounds = self._records[sampling.vm.name]
            said = rounds.pop(0) if len(rounds) > 1 else rounds[0]
            if isinstance(said, str):
                nothing = np.zeros(0, np.bool_)
                seen = WatchedPages(sampling.vm.name, nothing, nothing, said)
            else:
                known = np.arange(pages.size) < (1 if said >= 0 else -said) * pages.size
                touched = np.arange(pages.size) < said * pages.size
                seen = WatchedPages(sampling.vm.name, known, touched)
            sampling.ended(pages, seen)


class Run:
    """All that happens in a minute."""

    def __init__(
        self, directory: Path, records: dict[str, Sequence[Round]],
        vms: Sequence[ModelVm] | None = None,
    ) -> None:  # fmt: skip
        self.vms = vms or [
            ModelVm("known", 4711, 192 * MIB, gives=None, overhead=10 * MIB),
            ModelVm("other", 4712, 192 * MIB, gives=None, overhead=10 * MIB),
        ]
        host = ModelHost(list(self.vms))
        plan = host_plan(parse_scenario(HOST.format("auto"), "host.toml"))
        with host.in_place(), Ledger(directory) as ledger, pytest.MonkeyPatch.context() as patch:
            patch.setattr(manager_module, "open_sampler", lambda *of: Recorded(records))
            manager = Manager(plan, ledger, **host.sources())
            for second in range(SECONDS):
                host.seconds = float(second)
                if second == 30:
                    for vm in self.vms:
                        vm.touch(0, 180 * MIB)
                manager.step()
            self.events: list[Event] = list(manager.kernel.events)
            self.active = {vm.name: vm.active for vm in manager.kernel.vms}
            self.swapped = {vm.name: vm.count(LivePageState.SWAPPED) for vm in self.vms}
            assert manager.close()

    @property
    def decisions(self) -> list[Event]:
        """Without what the manager says of itself."""
        return [event for event in self.events if event.mechanism != MANAGE]

    def said(self, text: str) -> bool:
        return any(text in event.reason for event in self.events)


@pytest.mark.parametrize("failure", [NO_ANSWER, GONE, HALF_KNOWN])
def test_a_vm_that_was_never_measured_is_treated_as_fully_active(
    failure: Round, tmp_path: Path
) -> None:
    failed = Run(tmp_path / "a", {"known": [IDLE], "other": [failure]})
    active = Run(tmp_path / "b", {"known": [IDLE], "other": [BUSY]})
    idle = Run(tmp_path / "c", {"known": [IDLE], "other": [IDLE]})
    assert failed.active["other"] == 1.0
    assert failed.decisions == active.decisions
    assert failed.decisions != idle.decisions
    assert failed.swapped["known"] > 2 * failed.swapped["other"]
    text = failure if isinstance(failure, str) else "could be watched"
    assert failed.said(f"working set unknown: {text}") or failed.said(text)


def test_a_vm_whose_samples_begin_to_fail_is_idle_no_longer(tmp_path: Path) -> None:
    """The last figure counts for two periods; then nothing is known, and it is as active as can."""
    run = Run(tmp_path / "a", {"known": [IDLE], "other": [IDLE, IDLE, NO_ANSWER]})
    assert run.active["known"] < 0.2
    assert run.active["other"] == 1.0
    assert run.swapped["known"] > 2 * run.swapped["other"]


@pytest.mark.parametrize("how", ["refused", "unknown"])
def test_a_vm_whose_pages_cannot_be_seen_is_not_touched(how: str, tmp_path: Path) -> None:
    class Unseen(ModelVm):
        def page_states(self, kernel: object) -> PageStates:
            seen = super().page_states(kernel)
            if self.count(LivePageState.PRIVATE) <= 60 * MIB:
                return seen  # when it was taken over, it could be seen
            if how == "refused":
                raise AccessDenied("/proc/4712/pagemap: Permission denied; run memvirt as root")
            seen.state[:] = LivePageState.UNKNOWN
            return seen

    other = Unseen("other", 4712, 192 * MIB, overhead=10 * MIB)
    known = ModelVm("known", 4711, 192 * MIB, gives=None, overhead=10 * MIB)
    run = Run(tmp_path, {"known": [BUSY], "other": [IDLE]}, [known, other])
    assert (run.swapped["other"], other.told) == (0, [])
    assert run.swapped["known"] > 0  # another is taken instead, however busy
    assert run.said("Permission denied" if how == "refused" else "its pages cannot be told")


def test_damon_in_other_hands_is_named_with_every_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kdamonds = tmp_path / "admin" / "kdamonds"
    kdamonds.mkdir(parents=True)
    (kdamonds / "nr_kdamonds").write_text("1\n")
    admin, note, bitmap = tmp_path / "admin", tmp_path / "note", tmp_path / "bitmap"
    monkeypatch.setattr(working_set, "Damon", lambda: damon.Damon(admin, note))
    monkeypatch.setattr(working_set, "damon_problem", lambda: damon.damon_problem(admin))
    monkeypatch.setattr(
        working_set, "idle_pages_problem", lambda: idle_pages.idle_pages_problem(bitmap)
    )
    said: list[str] = []
    open_sampler(WorkingSetWay.AUTO, None, 1.0, said.append).close()
    (problem,) = said
    assert "DAMON is in use on this host" in problem
    assert "CONFIG_IDLE_PAGE_TRACKING" in problem
    with pytest.raises(damon.DamonBusy):
        choose_watcher(WorkingSetWay.DAMON)
    assert (kdamonds / "nr_kdamonds").read_text() == "1\n"

    vms = [ModelVm("known", 4711, 192 * MIB), ModelVm("other", 4712, 192 * MIB)]
    host = ModelHost(vms)
    plan = host_plan(parse_scenario(HOST.format("auto"), "host.toml"))
    with (
        host.in_place(),
        Ledger(tmp_path / "ledger") as ledger,
        monkeypatch.context() as patch,
    ):
        patch.setattr(manager_module, "open_sampler", open_sampler)
        with Manager(plan, ledger, **(host.sources() | {"watcher": None})) as manager:
            manager.step()
            (event,) = [e for e in manager.kernel.events if "working sets are unknown" in e.reason]
            assert event.reason == problem
            assert event.reason.endswith("all count as active")
            assert [vm.active for vm in manager.kernel.vms] == [1.0, 1.0]
            assert manager.kernel.sample().vms[0].active_percent == 100


def test_a_way_that_is_free_later_is_used_from_then_on() -> None:
    """Somebody holds DAMON, and lets it go."""
    held, seconds, said = True, 0.0, list[str]()
    closed = []
    watcher: Any = SimpleNamespace(interrupt=lambda: None, close=lambda: closed.append(True))

    def choose() -> tuple[Any, str, str]:
        return (None, "none", "DAMON is in use on this host") if held else (watcher, "damon", "")

    sampler = Sampler(choose, None, 1.0, said.append, clock=lambda: seconds)
    sampler.begin()
    seconds = 61.0
    sampler.begin()
    seconds = 100.0
    sampler.begin()
    assert said == ["working sets are unknown: DAMON is in use on this host; all count as active"]
    held = False
    seconds = 110.0
    sampler.begin()
    assert len(said) == 1  # it looks once a minute
    seconds = 200.0
    sampler.begin()
    assert said[1:] == ["working sets are sampled, by damon"]
    sampler.close()
    assert closed == [True]
