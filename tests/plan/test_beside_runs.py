# SPDX-License-Identifier: Apache-2.0
"""What is planned beside what happens: every bundled scenario, really run.

A run depends on its scenario alone, not on the machine it runs on. Each scenario is run on a host
with plenty of memory, from which a planner would measure it, and on its own, small host. Both
records are planned for the small host. Compared is the most memory that is reclaimed at one moment.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memvirt.host.host import Host
from memvirt.observe.record import Recorder, read_record
from memvirt.plan.assumptions import Draw
from memvirt.plan.fleet import Fleet, assemble
from memvirt.plan.policy import HostRules
from memvirt.plan.readers.detect import read_files
from memvirt.plan.rounds import BALLOON, SWAP, HostRun, simulate_host
from memvirt.scenario.scenario import Scenario, bundled_scenarios, find_scenario

# Of what happened. The plan knows samples of 50 ms and one figure each for compressibility and
# sharing; the VMkernel knows pages.
SAME_DEMAND, FORECAST = 0.2, 0.25
COMPRESSIBLE = 0.3
MIB = 256.0  # pages


@dataclass(frozen=True)
class Measured:
    """A run: its record, the series a planner reads of it, and the most that sharing saved, as a
    part of the memory with frames, while there was at least half of the most memory in use."""

    columns: dict[str, Any]
    fleet: Fleet
    shared: float

    @property
    def reclaimed(self) -> float:
        """Frames."""
        parts = ("host_balloon", "host_zip_frames", "host_swapped")
        return float(np.sum([self.columns[part] for part in parts], axis=0).max())


def measure(scenario: Scenario, path: Path) -> Measured:
    with (
        Recorder(path, scenario="", name="host", version="0") as recorder,
        Host(scenario) as host,
    ):
        assert host.run(on_sample=recorder.add, sample_interval=0.05)
    columns = read_record(path)[0]
    on = columns["condition"] != "off"
    _, when = np.unique(columns["host_time_ns"], return_inverse=True)
    granted, saved = (
        np.bincount(when, weights=np.where(on, columns[name], 0.0))
        for name in ("granted", "shared_saved")
    )
    enough = granted >= granted.max() / 2
    shared = float((saved[enough] / granted[enough]).max())
    return Measured(columns, assemble(read_files([path])), shared)


@dataclass(frozen=True)
class Both:
    """A scenario on plenty of memory and on its own host."""

    name: str
    small: Scenario
    plenty: Measured
    real: Measured

    def plan(self, fleet: Fleet, shared: float) -> HostRun:
        managed = self.small.machine.memory // 4096 - int(self.real.columns["host_vmkernel"][0])
        rules = HostRules(managed, self.small.machine.Mem)
        return simulate_host(rules, fleet, Draw(1, 0.5, COMPRESSIBLE, shared))

    def planned(self, measured: Measured) -> tuple[float, float]:
        """Frames reclaimed at one moment, if as much is shared as was measured, and if nothing."""
        return frames(self.plan(measured.fleet, measured.shared)), frames(
            self.plan(measured.fleet, 0.0)
        )


def frames(run: HostRun) -> float:
    return float((run.ballooned + run.compressed / 2 + run.swapped).max())


@pytest.fixture(scope="module", params=list(bundled_scenarios()))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp(request.param)
    data = tomllib.loads(find_scenario(request.param).read_text())
    small = Scenario.model_validate(data)
    data["machine"]["memory"] = "1G"
    # There is room for large pages, which are not shared until memory is short: what sharing can
    # save is measured without them.
    data["machine"].setdefault("Mem", {})["AllocGuestLargePage"] = 0
    plenty = measure(Scenario.model_validate(data), folder / "plenty.parquet")
    assert plenty.columns["host_free"].min() > plenty.columns["host_total"][0] / 2
    return Both(request.param, small, plenty, measure(small, folder / "real.parquet"))


def test_the_policy_does_what_the_vmkernel_did(both: Both) -> None:
    """Of the demand that there was on the small host itself."""
    low, high = both.planned(both.real)
    happened = both.real.reclaimed
    assert happened > 4 * MIB
    assert low * (1 - SAME_DEMAND) <= happened <= high * (1 + SAME_DEMAND)
    if both.real.shared < 0.02:  # nothing unknown: the range is a number
        assert low == pytest.approx(happened, rel=SAME_DEMAND)
    # The same VMs pay.
    run = both.plan(both.real.fleet, 0.0)
    for row, vm in enumerate(both.real.fleet.vms):
        mine = both.real.columns["name"] == vm.name
        if both.real.columns["swapped"][mine].max() > 0.1 * happened:
            assert run.peak[SWAP, row] > 0
        if not vm.driver:
            assert run.peak[BALLOON, row] == 0


def test_a_forecast_from_plenty(both: Both) -> None:
    """Work that ends later on a slow host is beyond a plan: it is told too little then, and never
    more than if every VM had stayed until the last one ended."""
    happened, (low, high) = both.real.reclaimed, both.planned(both.plenty)
    assert low * (1 - FORECAST) <= happened
    fleet = both.plenty.fleet
    if both.name == "unfair-neighbour":
        assert high < happened  # "plain" ended before "neighbour" had grown
        stayed = replace(
            fleet, in_use=to_the_end(fleet.in_use), active=to_the_end(fleet.active)
        )  # fmt: skip
        high = frames(both.plan(stayed, 0.0))
    assert happened <= high * (1 + FORECAST)


def to_the_end(series: Any) -> Any:
    """Each VM keeps what it had when it ended."""
    known = np.where(np.isnan(series), -1, np.arange(series.shape[1]))
    last = np.maximum.accumulate(known, axis=1)
    return np.where(last < 0, np.nan, np.take_along_axis(series, np.maximum(last, 0), axis=1))
