# SPDX-License-Identifier: Apache-2.0
"""The options of ``memvirt boot``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from memvirt.platform.boot.protocol import Protocol

from .errors import UsageError, user_errors
from .machine_options import Append, Initrd, MachineMemory, Memory, Paging, PagingOption
from .web_command import Web


class Display(StrEnum):
    """What is shown of the guest's screen."""

    none = "none"
    text = "text"


def _exit_code(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value <= 0xFFFF_FFFF:
        raise UsageError(f"--success-code {text}: it is a number up to 32 bits, such as 0x10 or 0")
    return value


def boot_command(
    image: Annotated[str, typer.Argument(help='kernel image, or "bundled"')],
    memory: Memory = "64M",
    machine_memory: MachineMemory = None,
    paging: PagingOption = Paging.nested,
    append: Append = "",
    initrd: Initrd = None,
    protocol: Annotated[Protocol, typer.Option(help="boot protocol")] = Protocol.AUTO,
    serial: Annotated[str, typer.Option(help="stdio, or a file")] = "stdio",
    timeout: Annotated[
        float | None, typer.Option(min=0.001, max=1e9, help="seconds of host time")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="audit the invariants as it runs")] = False,
    stats: Annotated[Path | None, typer.Option(help="write statistics as JSON")] = None,
    snapshot: Annotated[Path | None, typer.Option(help="write a snapshot at the end")] = None,
    success_code: Annotated[
        str, typer.Option(help="what the guest writes to port 0xf4 when all is well")
    ] = "0x10",
    display: Annotated[
        Display, typer.Option(help="text: the VGA text screen, drawn here, printed at the end")
    ] = Display.none,
    gdb: Annotated[
        str | None,
        typer.Option(metavar="PORT|SOCKET", help="wait for gdb here before the first instruction"),
    ] = None,
    web: Web = None,
) -> None:
    """Boot one VM, with its serial console here.

    Exit status: 0 the guest reports success, 1 it reports failure, 2 usage or bad input, 3 the VM
    died, 124 timeout.
    """
    with user_errors():
        from .boot import BootOptions, boot  # noqa: PLC0415

        options = BootOptions(
            image, memory, machine_memory, paging.value, append, initrd, protocol,
            success_code=_exit_code(success_code),
        )  # fmt: skip
        if web is not None:
            excluded = serial != "stdio" or stats or snapshot or display is not Display.none or gdb
            if excluded or protocol is not Protocol.AUTO:
                raise UsageError(
                    "--web excludes --serial, --stats, --snapshot, --display, --gdb and --protocol"
                )
            from .web import boot_in_browser  # noqa: PLC0415

            sys.exit(boot_in_browser(options, web, timeout=timeout, check=check))
        status = boot(
            options,
            serial=serial,
            timeout=timeout,
            check=check,
            stats=stats,
            snapshot=snapshot,
            display=display is Display.text,
            gdb=gdb,
        )
    sys.exit(status)
