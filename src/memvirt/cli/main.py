# SPDX-License-Identifier: Apache-2.0
"""The ``memvirt`` command."""

from __future__ import annotations

import atexit
import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from memvirt import __version__
from memvirt.cpu.factory import describe_processor
from memvirt.cpu.processor import ProcessorError
from memvirt.live.working_set import DEFAULT_PERIOD_SECONDS, WorkingSetWay
from memvirt.observe.address_map import map_address, render
from memvirt.observe.snapshot import load_snapshot
from memvirt.observe.view import live_view
from memvirt.platform.boot.detect import Protocol
from memvirt.scenario.scenario import (
    bundled_scenarios,
    find_scenario,
    key_tables,
    scenario_schema,
)

from .boot import BootOptions, boot, make_vm
from .errors import UsageError, planning_tools, user_errors
from .forecast import parse_salts, run_forecast
from .live_map import LiveMapOptions, live_map, parse_range
from .page_command import page_command
from .run import RunOptions, run
from .watch import WatchOptions, chosen_vms, watch

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Memory virtualization as a hypervisor does it, running real x86-64 guests.",
)


class Paging(StrEnum):
    """The paging modes a user can choose."""

    shadow = "shadow"
    nested = "nested"
    flat = "flat"


Memory = Annotated[str, typer.Option(help="guest-physical memory of the VM")]
MachineMemory = Annotated[
    str | None,
    typer.Option(help="machine memory of the host; without it 256M, or as much as the VM may need"),
]
PagingOption = Annotated[
    Paging, typer.Option(help="shadow or nested page tables; flat: no virtualization, to compare")
]
Append = Annotated[str, typer.Option(help="kernel command line")]
Initrd = Annotated[Path | None, typer.Option(help="initial RAM disk")]
ProtocolOption = Annotated[Protocol, typer.Option(help="boot protocol")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"memvirt {__version__}")
        try:
            print(f"engine: {describe_processor()}")
        except ProcessorError as error:
            print(f"memvirt: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


@app.command("boot")
def boot_command(
    image: Annotated[str, typer.Argument(help='kernel image, or "bundled"')],
    memory: Memory = "64M",
    machine_memory: MachineMemory = None,
    paging: PagingOption = Paging.nested,
    append: Append = "",
    initrd: Initrd = None,
    protocol: ProtocolOption = Protocol.AUTO,
    serial: Annotated[str, typer.Option(help="stdio, or a file")] = "stdio",
    timeout: Annotated[float | None, typer.Option(min=0.001, help="seconds of host time")] = None,
    check: Annotated[bool, typer.Option("--check", help="audit the invariants as it runs")] = False,
    stats: Annotated[Path | None, typer.Option(help="write statistics as JSON")] = None,
    snapshot: Annotated[Path | None, typer.Option(help="write a snapshot at the end")] = None,
) -> None:
    """Boot one VM, with its serial console here.

    Exit status: 0 the guest reports success, 1 it reports failure, 2 usage or bad input, 3 the VM
    died, 124 timeout.
    """
    with user_errors():
        options = BootOptions(image, memory, machine_memory, paging.value, append, initrd, protocol)
        status = boot(
            options, serial=serial, timeout=timeout, check=check, stats=stats, snapshot=snapshot
        )
    sys.exit(status)


def _list_scenarios(wanted: bool) -> None:
    if wanted:
        for name, meaning in bundled_scenarios().items():
            print(f"{name:<18} {meaning}")
        raise typer.Exit


@app.command("run")
def run_command(
    scenario: Annotated[
        str, typer.Argument(help="scenario file (TOML), or the name of a bundled one")
    ] = "default",
    batch: Annotated[
        bool, typer.Option("--batch", help="CSV in esxtop's batch layout on standard output")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.001, help="virtual seconds between two samples")
    ] = 0.05,
    record: Annotated[Path | None, typer.Option(help="keep all samples in a Parquet file")] = None,
    events: Annotated[
        Path | None, typer.Option(help="write the decisions: JSON lines, or FILE.csv")
    ] = None,
    columns: Annotated[str, typer.Option(help="columns to show, separated by commas")] = "",
    list_scenarios: Annotated[
        bool,
        typer.Option("--list", callback=_list_scenarios, is_eager=True, help="bundled scenarios"),
    ] = False,
) -> None:
    """Run the VMs of a scenario on one machine, their memory managed by the VMkernel.

    Exit status: 0 only if every guest verified its memory; 130 after Ctrl-C.
    """
    with user_errors():
        path = find_scenario(scenario)
        status = run(RunOptions(path, batch, interval, record, events, columns))
    sys.exit(status)


@app.command("schema")
def schema_command(
    tables: Annotated[
        bool, typer.Option("--tables", help="the keys as Markdown tables instead")
    ] = False,
) -> None:
    """Print the JSON Schema of scenario files."""
    print(key_tables() if tables else json.dumps(scenario_schema(), indent=2))


@app.command("map")
def map_command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[SNAPSHOT] ADDRESS",
            help="guest virtual address; with --vm also FIRST-LAST or FIRST+BYTES",
        ),
    ],
    boot_image: Annotated[
        str | None, typer.Option("--boot", metavar="IMAGE", help="boot this instead of a snapshot")
    ] = None,
    run_for: Annotated[
        float, typer.Option(min=0, help="with --boot: virtual seconds to run first")
    ] = 0.1,
    memory: Memory = "64M",
    machine_memory: MachineMemory = None,
    paging: PagingOption = Paging.nested,
    append: Append = "",
    initrd: Initrd = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for programs")] = False,
    vm_name: Annotated[
        str | None,
        typer.Option("--vm", metavar="NAME", help="a live QEMU VM: name, process or domain"),
    ] = None,
    physical: Annotated[
        bool, typer.Option("--physical", help="with --vm: ADDRESS is guest physical")
    ] = False,
    frame: Annotated[
        bool, typer.Option("--frame", help="with --vm: ADDRESS is a page frame number of the host")
    ] = False,
    cpu: Annotated[int, typer.Option(min=0, help="with --vm: virtual processor")] = 0,
    cr3: Annotated[
        str | None, typer.Option(help="with --vm: another root of page tables than its CR3")
    ] = None,
) -> None:
    """Show every step from a guest virtual address to the machine page behind it."""
    with user_errors():
        if vm_name is not None:
            if boot_image is not None or len(words) != 1:
                raise UsageError("map --vm NAME takes one ADDRESS, and no --boot")
            root = None if cr3 is None else parse_range(cr3)[0]
            sys.exit(
                live_map(LiveMapOptions(vm_name, words[0], physical, frame, cpu, root, as_json))
            )
        if physical or frame or cpu or cr3 is not None:
            raise UsageError("--physical, --frame, --cpu and --cr3 need --vm NAME")
        wanted = 1 if boot_image is not None else 2
        if len(words) != wanted:
            what = "ADDRESS" if wanted == 1 else "SNAPSHOT ADDRESS"
            raise UsageError(f"map takes {what}, not {len(words)} arguments")
        try:
            gva = int(words[-1], 0)
        except ValueError:
            raise UsageError(f"{words[-1]} is no address; write for instance 0x100000") from None
        if boot_image is None:
            view = load_snapshot(words[0])
        else:
            vm = make_vm(
                BootOptions(boot_image, memory, machine_memory, paging.value, append, initrd), None
            )
            while vm.outcome is None and vm.virtual_ns < run_for * 1e9:
                vm.run_quantum(min(10_000_000, int(run_for * 1e9) - vm.virtual_ns + 1))
            view = live_view(vm)
        try:
            result = map_address(view, gva)
        except ValueError as error:
            raise UsageError(str(error)) from error
        print(json.dumps(result.as_json(), indent=2) if as_json else render(result))


@app.command("watch")
def watch_command(
    vms: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VM]...", help="names, processes or domains; without any, all"),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.05, help="seconds between two samples")] = 2.0,
    iterations: Annotated[
        int | None, typer.Option("--iterations", "-n", min=1, help="samples, then end")
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
        float, typer.Option(min=1, help="seconds a working set is sampled")
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
        float | None, typer.Option(min=0.1, help="with --forecast: MB a second to read, at most")
    ] = None,
) -> None:
    """Watch the VMs that QEMU runs on this host; change nothing.

    Ends with Ctrl-C, or after its samples; exit status 0, or 2 if something is amiss.
    """
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


Files = Annotated[list[Path], typer.Argument(help="files or folders", show_default=False)]
Workers = Annotated[
    int, typer.Option(min=0, help="processes on this machine; 0: as many as are worth it")
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


@app.command("plan")
def plan_command(
    files: Files,
    host: Annotated[str | None, typer.Option(help="memory of a host, such as 512G")] = None,
    hosts: Annotated[int | None, typer.Option(min=1, help="place on so many hosts")] = None,
    fit: Annotated[bool, typer.Option("--fit", help="place on as few hosts as possible")] = False,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            help="a change to compare: memory=+64G, sharing=on, grow=20%, balloon=off, ..."
        ),
    ] = None,
    grow: Annotated[str, typer.Option(help="VMs and their use grow by so much")] = "0%",
    failover: Annotated[int, typer.Option(min=0, help="so many hosts die")] = 0,
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
    draws: Annotated[int, typer.Option(min=2, help="draws of what was not measured")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="seed of the draws")] = 1,
    interval: Annotated[
        float | None, typer.Option(min=0.001, help="seconds of an interval, if not the data's")
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
    with user_errors():
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
                json_file, html,
            ),
        )  # fmt: skip
    sys.exit(status)


class Sharers(StrEnum):
    """Which VMs may share pages with each other."""

    all = "all"
    folder = "folder"
    vm = "vm"


@app.command("analyze")
def analyze_command(
    dumps: Annotated[list[Path], typer.Argument(help="memory dumps", show_default=False)],
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

    Reads ELF dumps of QEMU, kdump-compressed dumps, LiME, raw memory, and memvirt's snapshots.
    """
    with user_errors():
        with planning_tools():
            from .analyze import AnalyzeOptions, analyze_dumps  # noqa: PLC0415
        analyze_dumps(
            AnalyzeOptions(
                dumps, share.value, pages, scratch, workers, scheduler, memory_per_worker,
                json_file, html,
            )
        )  # fmt: skip


app.command("page")(page_command)


def main() -> None:
    """Entry point of the console script."""
    status: int | str | None = 0
    try:
        app()
    except SystemExit as stop:
        status = stop.code
    if isinstance(status, str):
        print(status, file=sys.stderr)
    # Without the interpreter's own farewell: tearing down the compiled kernels takes longer than
    # many a guest's whole run, and gives nothing back that the system does not take anyway.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))
