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
from .errors import UsageError, user_errors
from .run import RunOptions, run

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
        list[str], typer.Argument(metavar="[SNAPSHOT] ADDRESS", help="guest virtual address")
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
) -> None:
    """Show every step from a guest virtual address to the machine page behind it."""
    with user_errors():
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
