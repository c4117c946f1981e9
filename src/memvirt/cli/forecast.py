# SPDX-License-Identifier: Apache-2.0
"""``memvirt watch --forecast``: what page sharing would save among the chosen live VMs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from memvirt.live.discovery import DiscoveredVm
from memvirt.live.errors import LiveError, VmNotFound
from memvirt.live.forecast import SharingForecast, forecast_sharing
from memvirt.live.vm import LiveVm, open_kernel_pages
from memvirt.size import format_size

from .errors import UsageError
from .interruption import interrupts_raise

_PAGE = 4096
_MOST_PAIRS = 20


def parse_salts(words: Iterable[str], names: Sequence[str]) -> dict[str, str]:
    """The salts of ``NAME=SALT`` words. Raises UsageError, also for a name no VM has."""
    salts = {}
    for word in words:
        name, equals, salt = word.partition("=")
        if not equals or not name:
            raise UsageError(f"--salt {word}: write NAME=SALT")
        if name not in names:
            raise UsageError(f"--salt {word}: no VM {name}; there are {', '.join(names)}")
        salts[name] = salt
    return salts


def run_forecast(
    vms: Sequence[DiscoveredVm],
    salts: Mapping[str, str],
    *,
    pages_per_second: float | None,
    as_json: bool,
) -> int:
    """Hash, forecast, print. Exit status 0; a VM that cannot be read is named and left out.

    Raises LiveError if none can be read.
    """
    interrupts_raise()  # the terminal's cursor has to come back
    kernel, problem = open_kernel_pages()
    if problem:
        print(f"memvirt: {problem}; pages shared already are unknown", file=sys.stderr)
    errors: list[LiveError] = []
    with contextlib.ExitStack() as stack:
        if kernel is not None:
            stack.enter_context(kernel)
        opened = []
        for vm in vms:
            try:
                opened.append(stack.enter_context(LiveVm(vm)))
                opened[-1].release_monitor()
            except LiveError as error:
                errors.append(error)
                print(f"memvirt: left out: {error}", file=sys.stderr)
        if not opened:
            raise errors[0] if errors else VmNotFound("no QEMU process is seen on this host")
        console = Console(stderr=True)
        progress = stack.enter_context(
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("pages"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
                disable=not console.is_terminal,
            )
        )
        tasks = {vm.name: progress.add_task(vm.name, total=None) for vm in opened}

        def tell(name: str, done: int, total: int) -> None:
            progress.update(tasks[name], completed=done, total=total)

        result = forecast_sharing(
            opened, kernel, salts=salts, pages_per_second=pages_per_second, on_progress=tell
        )
    if as_json:
        totals = {"saved": result.saved, "salted_saved": result.salted_saved}
        print(json.dumps(asdict(result) | totals, indent=2))
    else:
        out = Console(width=None if sys.stdout.isatty() else 150)
        print_forecast(out, result)
    return 0


def _size(pages: float | None) -> str:
    return "unknown" if pages is None else format_size(pages * _PAGE)


def print_forecast(out: Console, result: SharingForecast) -> None:
    """The forecast as tables, for people."""
    salted = len(result.salts) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("NAME", no_wrap=True)
    if salted:
        table.add_column("SALT", no_wrap=True)
    for name in ("RESIDENT", "ZERO", "WITHIN", "SHARED NOW", "KSM FINDS NOTHING BECAUSE"):
        table.add_column(
            name, justify="left" if "KSM" in name else "right", no_wrap="KSM" not in name
        )
    for vm in result.vms:
        row = [vm.name, *([vm.salt or "-"] if salted else [])]
        row += [_size(vm.resident), _size(vm.zero), _size(vm.within), _size(vm.already_saved)]
        table.add_row(*row, "; ".join(vm.ksm_obstacles))
    out.print(table)
    pairs = sorted(result.pairs, key=lambda pair: -pair.common)
    if pairs:
        out.print("\nin common, zeroes aside", style="bold")
        for pair in pairs[:_MOST_PAIRS]:
            apart = "" if pair.same_salt else "  (different salts: never shared)"
            out.print(
                f"  {pair.first} + {pair.second}: {_size(pair.common)}{apart}", highlight=False
            )
        if len(pairs) > _MOST_PAIRS:
            out.print(f"  and {len(pairs) - _MOST_PAIRS} pairs with less; --json has all")
    share = 100 * result.saved / max(result.resident, 1)
    out.print(
        f"\none pool would save {_size(result.saved)} of {_size(result.resident)} ({share:.0f} %): "
        f"{_size(result.zero)} zeroes, {_size(result.within)} within VMs, "
        f"{_size(result.across)} across VMs",
        highlight=False,
    )
    if salted:
        out.print(f"with salts {_size(result.salted_saved)}", highlight=False)
    out.print(f"KSM on this host would save {_size(result.ksm_saved)}", highlight=False)
    for note in result.ksm_notes:
        out.print(f"note: {note}", highlight=False)
    out.print(
        f"took {result.seconds:.1f} s, {result.cpu_seconds:.1f} s of processor time",
        style="dim",
        highlight=False,
    )
