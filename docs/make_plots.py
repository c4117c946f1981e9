# SPDX-License-Identifier: Apache-2.0
"""Run the bundled scenarios, and plot each from its own record: `make docs`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from memvirt.host.host import Host
from memvirt.observe.record import Recorder, read_record
from memvirt.scenario.scenario import Scenario, find_scenario, load_scenario, parse_scenario

matplotlib.use("svg")
import matplotlib.pyplot as plt

PLOTS = Path(__file__).parent / "plots"
SCENARIOS = ("identical-guests", "idle-hoarder", "memory-pressure", "unfair-neighbour")
MIB = 256  # pages
_INTERVAL = 0.01


def record(scenario: Scenario, text: str, name: str) -> dict[str, Any]:
    """Run a scenario; the columns of its record."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.parquet"
        with (
            Recorder(path, scenario=text, name=name, version="docs") as recorder,
            Host(scenario) as host,
        ):
            assert host.run(on_sample=recorder.add, sample_interval=_INTERVAL)
        return read_record(path)[0]


def plot_vms(axes: Any, columns: dict[str, Any]) -> None:
    """Machine memory each VM consumes."""
    for name in dict.fromkeys(columns["name"].tolist()):
        mine = (columns["name"] == name) & (columns["condition"] != "off")
        seconds = columns["host_time_ns"][mine] / 1e9
        axes.plot(seconds, columns["consumed"][mine] / MIB, label=name)
    axes.set_ylabel("consumed, MiB")
    axes.legend(fontsize="small", ncols=2)
    axes.set_ylim(bottom=0)


def plot_host(axes: Any, columns: dict[str, Any]) -> None:
    """What the mechanisms save or hold."""
    _, first = np.unique(columns["host_time_ns"], return_index=True)
    seconds = columns["host_time_ns"][first] / 1e9

    def series(name: str) -> Any:
        return columns[f"host_{name}"][first] / MIB

    axes.fill_between(seconds, series("free"), color="0.9", label="free")
    axes.plot(seconds, series("shared") - series("common"), label="saved by sharing")
    axes.plot(seconds, series("balloon"), label="in balloons")
    axes.plot(seconds, series("zipped"), label="compressed")
    axes.plot(seconds, series("swapped"), label="swapped")
    axes.set_ylabel("host, MiB")
    axes.set_xlabel("virtual time, s")
    axes.legend(fontsize="small", ncols=2)
    axes.set_ylim(bottom=0)


def figure(name: str, runs: list[tuple[str, dict[str, Any]]]) -> None:
    """One column for each run, VMs above, host below."""
    plt.rcParams["svg.hashsalt"] = name  # the same picture every time
    plots, rows = plt.subplots(
        2, len(runs), figsize=(7 * len(runs), 6), sharex="col", sharey="row", squeeze=False
    )
    for number, (title, columns) in enumerate(runs):
        rows[0][number].set_title(title)
        plot_vms(rows[0][number], columns)
        plot_host(rows[1][number], columns)
    plots.tight_layout()
    PLOTS.mkdir(exist_ok=True)
    target = PLOTS / f"{name}.svg"
    plots.savefig(target, metadata={"Date": None})
    plt.close(plots)
    print(target)


def main() -> None:
    """All plots."""
    for name in SCENARIOS:
        path = find_scenario(name)
        text = path.read_text(encoding="utf-8")
        runs = [(name, record(load_scenario(path), text, name))]
        if name == "idle-hoarder":
            untaxed = text.replace("Mem.IdleTax = 75", "Mem.IdleTax = 0")
            runs = [("Mem.IdleTax = 75", runs[0][1])]
            runs.append(("Mem.IdleTax = 0", record(parse_scenario(untaxed, name), untaxed, name)))
        figure(name, runs)


if __name__ == "__main__":
    main()
