# SPDX-License-Identifier: Apache-2.0
"""The ``memvirt`` command.

What a command needs is imported when it runs: its options are in a module of their own, which
imports neither NumPy nor Numba, so that help and versions are there at once.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from memvirt import __version__
from memvirt.cpu.factory import describe_processor

from .boot_command import boot_command
from .display_command import display_command
from .errors import user_errors
from .manage_command import manage_command
from .map_command import map_command
from .page_command import page_command
from .plan_commands import analyze_command, plan_command
from .run_command import run_command
from .schema_command import schema_command
from .streams import use_standard_streams
from .typer_classes import Command, Group
from .warm_command import warm_command
from .watch_command import watch_command
from .web_command import WebCommand, web_command

app = typer.Typer(
    cls=Group,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: drawing it takes three times as long as all the rest
    help="Memory virtualization as a hypervisor does it, running real x86-64 guests.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"memvirt {__version__}")
        with user_errors():
            print(f"engine: {describe_processor()}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


# The first line of a command's help stands in the list of commands: at most one line long.
app.command("boot", cls=WebCommand)(boot_command)
app.command("run", cls=WebCommand, short_help="Run a scenario's VMs on one host, overcommitted.")(
    run_command
)
app.command("schema", cls=Command)(schema_command)
app.command(
    "map", cls=Command, short_help="Show what lies between an address and its machine page."
)(map_command)
app.command("display", cls=Command)(display_command)
app.command("watch", cls=Command)(watch_command)
app.command("plan", cls=Command, short_help="Say whether VMs fit, and who will balloon or swap.")(
    plan_command
)
app.command(
    "analyze", cls=Command, short_help="Say what is in the memory of VMs, and what would save it."
)(analyze_command)
app.command(
    "page", cls=Command, short_help="Page a running VM of QEMU from outside (experimental)."
)(page_command)
app.command("web", cls=Command)(web_command)
app.command("warm", cls=Command, short_help="Compile for this machine ahead of the first use.")(
    warm_command
)
app.command("manage", cls=Command, short_help="Manage this host's live VMs as ESXi does.")(
    manage_command
)


def main() -> None:
    """Entry point of the console script. It ends the process."""
    use_standard_streams()
    status = _status_of(app)
    flushed = _status_of(sys.stdout.flush)  # what was printed last may be what cannot be written
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done
    # Without the interpreter's own farewell: tearing down the compiled kernels takes longer than
    # many a guest's whole run, and gives nothing back that the system does not take anyway.
    atexit._run_exitfuncs()
    os._exit(status or flushed)


def _status_of(act: Callable[[], object]) -> int:
    """The exit status of what ``act`` comes to."""
    try:
        with user_errors():
            act()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
