# SPDX-License-Identifier: Apache-2.0
"""The options of ``memvirt plan`` and ``memvirt analyze``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .errors import planning_tools, sigterm_ends, user_errors

Files = Annotated[list[Path], typer.Argument(help="files or folders", show_default=False)]
Workers = Annotated[
    int, typer.Option(min=0, max=1024, help="processes on this machine; 0: as many as are worth it")
]
Scheduler = Annotated[str | None, typer.Option(help="address of a Dask scheduler to work on")]
MemoryPerWorker = Annotated[str, typer.Option(help="most memory of a worker, such as 4GB")]
JsonFile = Annotated[Path | None, typer.Option("--json", help='write JSON; "-": here')]
HtmlFile = Annotated[Path | None, typer.Option("--html", help="write a report as one HTML file")]


class Allowed(StrEnum):
    """What may happen to VMs that fit."""

    none = "none"
    balloon = "balloon"
    compress = "compress"
    swap = "swap"


def plan_command(
    files: Files,
    host: Annotated[str | None, typer.Option(help="memory of a host, such as 512G")] = None,
    hosts: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="place on so many hosts")
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="place on as few hosts as possible")] = False,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            help="a change to compare: memory=+64G, sharing=on, grow=20%, balloon=off, ..."
        ),
    ] = None,
    grow: Annotated[str, typer.Option(help="VMs and their use grow by so much")] = "0%",
    failover: Annotated[int, typer.Option(min=0, max=100_000, help="so many hosts die")] = 0,
    cluster: Annotated[
        list[str] | None, typer.Option(help="only VMs and hosts of this cluster")
    ] = None,
    allow: Annotated[
        Allowed, typer.Option(help="what may happen to VMs that are said to fit")
    ] = Allowed.none,
    in_use: Annotated[
        str | None, typer.Option(help="memory in use where it was not measured: 25%..100%")
    ] = None,
    active: Annotated[
        str | None, typer.Option(help="active part of it where that was not measured: 5%..50%")
    ] = None,
    compressible: Annotated[
        str | None, typer.Option(help="pages that shrink to a half: 20%..80%")
    ] = None,
    sharing: Annotated[str | None, typer.Option(help="memory that sharing saves: 0%")] = None,
    measured: Annotated[
        Path | None, typer.Option(help="take sharing and compression from memvirt analyze --json")
    ] = None,
    draws: Annotated[
        int, typer.Option(min=2, max=100_000, help="draws of what was not measured")
    ] = 16,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="seed of the draws")] = 1,
    interval: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e9, help="seconds of an interval, if not the data's"),
    ] = None,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    memory_per_worker: MemoryPerWorker = "auto",
    json_file: JsonFile = None,
    html: HtmlFile = None,
) -> None:
    """Do these VMs fit: which will balloon or swap, for how long, and what would help.

    Reads RVTools exports, esxtop batch files, Prometheus range queries, Bitbrains traces, records
    of memvirt run, and plain CSV (docs/plan.md). Exit status: 0 they fit, 1 they do not.
    """
    with user_errors(), sigterm_ends():
        with planning_tools():
            from .plan import PlanOptions, plan  # noqa: PLC0415
            from .plan_question import make_question  # noqa: PLC0415
        question = make_question(
            host=host, hosts=hosts, fit=fit, grow=grow, failover=failover, allow=allow.value,
            in_use=in_use, active=active, compressible=compressible, sharing=sharing,
            measured=measured, draws=draws, seed=seed,
        )  # fmt: skip
        status = plan(
            question,
            PlanOptions(
                files, what_if or [], interval, workers, scheduler, memory_per_worker,
                json_file, html, tuple(cluster or ()),
            ),
        )  # fmt: skip
    sys.exit(status)


class Sharers(StrEnum):
    """Which VMs may share pages with each other."""

    all = "all"
    folder = "folder"
    vm = "vm"


def analyze_command(
    dumps: Annotated[
        list[Path] | None, typer.Argument(help="memory dumps", show_default=False)
    ] = None,
    vm: Annotated[
        list[str] | None,
        typer.Option(help="a live QEMU VM of this host: its name, process or libvirt domain"),
    ] = None,
    rate: Annotated[str, typer.Option(help="most bytes a second to read of live VMs")] = "256M",
    share: Annotated[
        Sharers, typer.Option(help="who may share: all VMs, those of one folder, each by itself")
    ] = Sharers.all,
    pages: Annotated[
        Path | None, typer.Option(help="write the class of every page as Parquet")
    ] = None,
    scratch: Annotated[
        Path | None, typer.Option(help="folder for intermediate files, seen by all workers")
    ] = None,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    memory_per_worker: MemoryPerWorker = "auto",
    json_file: JsonFile = None,
    html: HtmlFile = None,
) -> None:
    """What is in the memory of VMs: zero, equal, similar, compressible pages; what sharing saves.

    Reads ELF dumps of QEMU, kdump-compressed dumps, LiME, raw memory, memvirt's snapshots,
    and live VMs, of which only what has machine memory is read, once.
    """
    with user_errors(), sigterm_ends():
        with planning_tools():
            from .analyze import AnalyzeOptions, analyze_dumps  # noqa: PLC0415
        analyze_dumps(
            AnalyzeOptions(
                dumps or [], vm or [], rate, share.value, pages, scratch, workers, scheduler,
                memory_per_worker, json_file, html,
            )
        )  # fmt: skip
