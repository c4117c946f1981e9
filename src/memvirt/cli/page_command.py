# SPDX-License-Identifier: Apache-2.0
"""The options of ``memvirt page``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from memvirt.size import parse_size

from .errors import UsageError, user_errors

DEFAULT_STORE = Path("/var/lib/memvirt/pages")


class CodecName(StrEnum):
    """The codecs a user can choose."""

    lz4 = "lz4"
    zstd = "zstd"


def page_command(
    vm: Annotated[
        str | None, typer.Option(metavar="VM", help="name, process number or libvirt domain")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="SIZE", help="memory that may stay resident")
    ] = None,
    cold: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=1, max=1e9, help="evict what has been in memory that long"
        ),
    ] = None,
    store: Annotated[
        Path, typer.Option(metavar="DIR", help="where evicted pages are kept")
    ] = DEFAULT_STORE,
    store_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="most that the store may hold")
    ] = None,
    salt: Annotated[
        str, typer.Option(help="VMs with one salt keep equal pages once; without it nobody shares")
    ] = "",
    codec: Annotated[CodecName, typer.Option(help="how pages are compressed")] = CodecName.lz4,
    rate: Annotated[
        float | None,
        typer.Option(metavar="PAGES/S", min=1, max=1e9, help="most pages evicted a second"),
    ] = None,
    interval: Annotated[
        float, typer.Option(min=0.1, max=1e9, help="seconds between two status lines")
    ] = 5.0,
    detach_wanted: Annotated[
        bool, typer.Option("--detach", help="bring everything back and leave the VM alone")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="what is paged (without --vm: of all VMs)")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="with --status: JSON")] = False,
    listen: Annotated[
        Path | None,
        typer.Option(metavar="SOCKET", help="wait here for a VMM that hands its userfaultfd over"),
    ] = None,
    memory_file: Annotated[
        Path | None, typer.Option(help="with --listen: the snapshot's memory file")
    ] = None,
    no_direct_io: Annotated[
        bool,
        typer.Option(
            "--no-direct-io", help="with --listen: no device of the VM does direct I/O; may evict"
        ),
    ] = False,
) -> None:
    """Page a running VM of QEMU from outside (experimental; see docs/paging-live.md).

    Runs until the VM ends or Ctrl-C, which brings every page back first. Exit status: 0, or 2 if
    the VM cannot be paged.
    """
    from memvirt.live.pager.blocks import Codec  # noqa: PLC0415
    from memvirt.live.pager.evictor import Pace  # noqa: PLC0415
    from memvirt.live.pager.session import StoreOptions  # noqa: PLC0415
    from memvirt.live.pager.supervisor import Policy  # noqa: PLC0415
    from memvirt.live.pager.victims import Goal  # noqa: PLC0415

    from .interruption import interrupts_raise  # noqa: PLC0415
    from .page import PageOptions, detach, page_hand_off, page_vm, show_status  # noqa: PLC0415

    with user_errors():
        interrupts_raise()  # what is half attached has to be given back, and a socket to go
        if status:
            sys.exit(show_status(vm, as_json=as_json))
        if (vm is None) == (listen is None):
            raise UsageError("page takes --vm VM, or --listen SOCKET, or --status")
        if detach_wanted:
            if vm is None:
                raise UsageError("--detach takes --vm VM")
            sys.exit(detach(vm))
        goal = Goal(parse_size(target, what="--target") if target is not None else None, cold)
        if goal == Goal() and listen is None:
            raise UsageError("say what may stay: --target SIZE, or --cold SECONDS, or both")
        limit = parse_size(store_limit, what="--store-limit") if store_limit is not None else None
        options = PageOptions(
            Policy(goal, Pace(pages_per_second=rate)),
            StoreOptions(store, salt, Codec[codec.name.upper()], limit),
            interval,
        )
        if listen is not None:
            result = page_hand_off(
                listen, options, memory_file=memory_file, no_direct_io=no_direct_io
            )
        else:
            assert vm is not None
            result = page_vm(vm, options)
    sys.exit(result)
