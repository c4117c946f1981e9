# SPDX-License-Identifier: Apache-2.0
"""The options of ``memvirt run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .errors import UsageError, user_errors
from .web_command import Web


def _list_scenarios(wanted: bool) -> None:
    if wanted:
        from memvirt.scenario.scenario import bundled_scenarios  # noqa: PLC0415

        for name, meaning in bundled_scenarios().items():
            print(f"{name:<18} {meaning}")
        raise typer.Exit


def run_command(
    scenario: Annotated[
        str, typer.Argument(help="scenario file (TOML), or the name of a bundled one")
    ] = "default",
    batch: Annotated[
        bool, typer.Option("--batch", help="CSV in esxtop's batch layout on standard output")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.001, max=1e9, help="virtual seconds between two samples")
    ] = 0.05,
    record: Annotated[Path | None, typer.Option(help="keep all samples in a Parquet file")] = None,
    events: Annotated[
        Path | None, typer.Option(help="write the decisions: JSON lines, or FILE.csv")
    ] = None,
    columns: Annotated[str, typer.Option(help="columns to show, separated by commas")] = "",
    web: Web = None,
    list_scenarios: Annotated[
        bool,
        typer.Option("--list", callback=_list_scenarios, is_eager=True, help="bundled scenarios"),
    ] = False,
) -> None:
    """Run the VMs of a scenario on one machine, their memory managed by the VMkernel.

    Exit status: 0 only if every guest verified its memory; 130 after Ctrl-C.
    """
    with user_errors():
        from memvirt.scenario.scenario import find_scenario  # noqa: PLC0415

        from .run import RunOptions, run  # noqa: PLC0415

        if batch and web is not None:
            raise UsageError("--batch and --web exclude each other")
        path = find_scenario(scenario)
        status = run(RunOptions(path, batch, interval, record, events, columns, web))
    sys.exit(status)
