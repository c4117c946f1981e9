# SPDX-License-Identifier: Apache-2.0
"""The options of ``memvirt watch``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from memvirt.live.working_set_way import DEFAULT_PERIOD_SECONDS, WorkingSetWay

from .errors import UsageError, user_errors


def watch_command(
    vms: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VM]...", help="names, processes or domains; without any, all"),
    ] = None,
    interval: Annotated[
        float, typer.Option(min=0.05, max=1e9, help="seconds between two samples")
    ] = 2.0,
    iterations: Annotated[
        int | None, typer.Option("--iterations", "-n", min=1, max=10**9, help="samples, then end")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="one sample")] = False,
    batch: Annotated[
        bool, typer.Option("--batch", help="CSV in esxtop's batch layout on standard output")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for programs")] = False,
    record: Annotated[Path | None, typer.Option(help="keep all samples in a Parquet file")] = None,
    columns: Annotated[str, typer.Option(help="columns to show, separated by commas")] = "",
    working_set: Annotated[
        WorkingSetWay, typer.Option(help="how the working set is measured")
    ] = WorkingSetWay.AUTO,
    period: Annotated[
        float, typer.Option(min=1, max=1e9, help="seconds a working set is sampled")
    ] = DEFAULT_PERIOD_SECONDS,
    scan_percent: Annotated[
        float, typer.Option(min=0.01, max=100, help="of a processor, for looking at all pages")
    ] = 1.0,
    forecast: Annotated[
        bool, typer.Option("--forecast", help="what page sharing would save, then end")
    ] = False,
    salt: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SALT", help="with --forecast: VMs of other salts never share"),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.1, max=1e9, help="with --forecast: MB a second to read, at most"),
    ] = None,
) -> None:
    """Watch the VMs that QEMU runs on this host; change nothing.

    Ends with Ctrl-C, or after its samples; exit status 0, or 2 if something is amiss.
    """
    from .forecast import parse_salts, run_forecast  # noqa: PLC0415
    from .watch import WatchOptions, chosen_vms, watch  # noqa: PLC0415

    with user_errors():
        if batch and as_json:
            raise UsageError("--batch and --json exclude each other")
        if forecast:
            chosen = chosen_vms(vms or [])
            salts = parse_salts(salt or [], [vm.name for vm in chosen])
            pages = None if rate is None else rate * 256
            sys.exit(run_forecast(chosen, salts, pages_per_second=pages, as_json=as_json))
        if salt or rate is not None:
            raise UsageError("--salt and --rate need --forecast")
        status = watch(
            WatchOptions(
                names=vms or [],
                interval=interval,
                iterations=1 if once else iterations,
                batch=batch,
                as_json=as_json,
                record=record,
                columns=columns,
                way=working_set,
                period=period,
                scan_percent=scan_percent,
            )
        )
    sys.exit(status)
