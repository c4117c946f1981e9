# SPDX-License-Identifier: Apache-2.0
"""The options of ``memvirt manage``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .errors import UsageError, user_errors


def manage_command(
    file: Annotated[
        Path | None, typer.Argument(metavar="HOST.toml", help="the host and its VMs: a scenario")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what it would do; change nothing")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, max=1e9, help="manage for so long, then end")
    ] = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="only put back what a killed manager has changed")
    ] = False,
    events: Annotated[
        Path | None, typer.Option(help="write the decisions: JSON lines, or FILE.csv")
    ] = None,
    status: Annotated[
        float, typer.Option(min=0, max=1e9, help="seconds between two lines on all VMs; 0: none")
    ] = 10.0,
) -> None:
    """Manage the live VMs of this host as ESXi does, by shares, reservations and limits.

    Runs until Ctrl-C or SIGTERM, then puts back all it changed. Exit status: 0, 1 if something
    could not be put back, 2 usage or bad input.
    """
    from .manage import ManageCommand, manage, restore_only  # noqa: PLC0415

    with user_errors():
        if restore:
            if file is not None or dry_run or seconds is not None or events is not None:
                raise UsageError("--restore takes no HOST.toml and no other option")
            sys.exit(restore_only())
        if file is None:
            raise UsageError("manage takes a HOST.toml, or --restore")
        result = manage(ManageCommand(file, dry_run, seconds, events, status))
    sys.exit(result)
