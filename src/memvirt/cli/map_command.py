# SPDX-License-Identifier: Apache-2.0
"""The options of ``memvirt map``: a snapshot, a VM booted for it, or a live VM of QEMU."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .errors import UsageError, user_errors
from .machine_options import Append, Initrd, MachineMemory, Memory, Paging, PagingOption


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
        float, typer.Option(min=0, max=1e9, help="with --boot: virtual seconds to run first")
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
    cpu: Annotated[int, typer.Option(min=0, max=0xFFFF, help="with --vm: virtual processor")] = 0,
    cr3: Annotated[
        str | None, typer.Option(help="with --vm: another root of page tables than its CR3")
    ] = None,
) -> None:
    """Show every step from a guest virtual address to the machine page behind it."""
    with user_errors():
        if vm_name is not None:
            from .live_map import LiveMapOptions, live_map, parse_range  # noqa: PLC0415

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
        from .boot import BootOptions  # noqa: PLC0415
        from .map import booted_view, print_map, snapshot_view  # noqa: PLC0415

        if boot_image is None:
            view = snapshot_view(words[0])
        else:
            options = BootOptions(boot_image, memory, machine_memory, paging.value, append, initrd)
            view = booted_view(options, run_for)
        print_map(view, words[-1], as_json)
