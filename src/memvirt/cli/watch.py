# SPDX-License-Identifier: Apache-2.0
"""``memvirt watch``: the live VMs of this host on a terminal, as batch output, or in a record."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from memvirt import __version__
from memvirt.live.discovery import DiscoveredVm, discover, find_vm
from memvirt.live.errors import VmNotFound
from memvirt.live.statistics import LiveHostMemory, LiveSample, LiveVmMemory
from memvirt.live.watch import LiveHost
from memvirt.live.working_set import DEFAULT_PERIOD_SECONDS, WorkingSetWay
from memvirt.observe.live_batch import LiveBatchWriter
from memvirt.observe.live_esxtop import (
    LIVE_BY_NAME,
    LIVE_TEXT_COLUMNS,
    LiveColumn,
    LiveInterval,
    choose_live_columns,
    live_cell,
    live_header_lines,
)
from memvirt.observe.record import Recorder

from .errors import UsageError

_PLAIN_WIDTH = 150


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """The options of ``memvirt watch`` that choose what is shown and how."""

    names: Sequence[str] = ()
    interval: float = 2.0
    iterations: int | None = None
    batch: bool = False
    as_json: bool = False
    record: Path | None = None
    columns: str = ""
    way: WorkingSetWay = WorkingSetWay.AUTO
    period: float = DEFAULT_PERIOD_SECONDS
    scan_percent: float = 1.0


def parse_live_columns(text: str) -> list[LiveColumn] | None:
    """Columns by their names, separated by commas. Raises UsageError for an unknown one."""
    if not text:
        return None
    by_name = {name.upper(): column for name, column in LIVE_BY_NAME.items()}
    chosen = []
    for name in text.split(","):
        column = by_name.get(name.strip().upper())
        if column is None:
            names = ",".join(LIVE_BY_NAME)
            raise UsageError(f"--columns: no column {name.strip()}; there are {names}")
        chosen.append(column)
    return chosen


def chosen_vms(names: Sequence[str]) -> list[DiscoveredVm]:
    """The VMs called ``names``, or all. Raises VmNotFound for a name no VM has."""
    vms = discover()
    return [find_vm(name, vms) for name in names] if names else vms


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set: what was switched on is given back in good order."""
    asked = threading.Event()

    def note(*_: Any) -> None:
        asked.set()

    before = {sent: signal.signal(sent, note) for sent in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for sent, handler in before.items():
            signal.signal(sent, handler)


def live_table(interval: LiveInterval, columns: Sequence[LiveColumn]) -> Table:
    """A row for each VM."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        text = column.name in LIVE_TEXT_COLUMNS
        table.add_column(column.name, justify="left" if text else "right", no_wrap=True)
    for vm in interval.now.vms:
        style = {"unreachable": "dim", "unknown": "yellow", "paused": "red"}.get(vm.condition, "")
        table.add_row(*(live_cell(column, interval, vm) for column in columns), style=style)
    return table


def draw(interval: LiveInterval, columns: list[LiveColumn] | None, width: int) -> Group:
    """The whole screen for a terminal of that width."""
    names = [vm.name for vm in interval.now.vms]
    chosen = columns or choose_live_columns(width, max(map(len, names), default=4))
    parts: list[Text | Table] = [
        Text("\n".join(live_header_lines(interval)), no_wrap=True, overflow="ellipsis"),
        Text(),
        live_table(interval, chosen),
    ]
    if not names:
        parts.append(Text("no QEMU process is seen on this host", style="yellow"))
    # What all VMs lack for one reason is in the header already.
    known = interval.now.host.working_set_problem
    for vm in interval.now.vms:
        reasons = [part for part in vm.reason.split("; ") if part not in f"working set: {known}"]
        if reasons and vm.reason:
            parts.append(Text(f"{vm.name}: {'; '.join(reasons)}", style="yellow"))
    return Group(*parts)


@dataclass
class _Output:
    """Where samples go."""

    watchers: list[Callable[[LiveSample], None]] = field(default_factory=list)

    def write(self, sample: LiveSample) -> None:
        for watch in self.watchers:
            watch(sample)


def watch(options: WatchOptions) -> int:
    """Watch until Ctrl-C, or for as many samples as were asked for; exit status 0.

    Raises LiveError, UsageError.
    """
    columns = parse_live_columns(options.columns)
    if options.record is not None and not options.record.absolute().parent.is_dir():
        directory = options.record.absolute().parent
        raise UsageError(f"{options.record}: the directory {directory} does not exist")
    vms = chosen_vms(options.names)
    if options.batch and not vms:
        raise VmNotFound("no QEMU process is seen on this host: batch output would have no columns")
    pids = {vm.pid for vm in vms} if options.names else None
    out = Console()
    if not out.is_terminal:
        out = Console(width=_PLAIN_WIDTH)
    continuous = options.batch or out.is_terminal or options.record is not None
    iterations = options.iterations
    if options.as_json or (iterations is None and not continuous):
        iterations = iterations or 1
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(_stop_signals())
        host = stack.enter_context(
            LiveHost(
                wanted=lambda vm: pids is None or vm.pid in pids,
                way=options.way,
                period=options.period,
                scan_share=options.scan_percent / 100,
            )
        )
        output = _Output()
        if options.record is not None:
            recorder = Recorder(
                options.record,
                scenario="",
                name="live",
                version=__version__,
                host=LiveHostMemory,
                vm=LiveVmMemory,
            )
            output.watchers.append(stack.enter_context(recorder).add)
        if options.batch:
            output.watchers.append(_batch(vms))
        elif options.as_json:
            output.watchers.append(lambda sample: print(json.dumps(asdict(sample), indent=2)))
        else:
            output.watchers.append(_screen(stack, out, columns, live=iterations != 1))
        _loop(host, output, options.interval, iterations, stopped)
    return 0


def _loop(
    host: LiveHost,
    output: _Output,
    interval: float,
    iterations: int | None,
    stopped: threading.Event,
) -> None:
    done = 0
    while not stopped.is_set():
        output.write(host.sample())
        done += 1
        if iterations is not None and done >= iterations:
            return
        stopped.wait(interval)


def _batch(vms: Sequence[DiscoveredVm]) -> Callable[[LiveSample], None]:
    names = [vm.name for vm in vms]
    writer = LiveBatchWriter(sys.stdout, platform.node() or "memvirt", names, datetime.now(UTC))
    told: set[str] = set()

    def write(sample: LiveSample) -> None:
        for vm in sample.vms:
            if vm.name not in names and vm.name not in told:
                told.add(vm.name)
                print(f"memvirt: {vm.name} started later: it has no columns", file=sys.stderr)
        try:
            writer.write(sample)
        except OSError as error:
            # What is still buffered would fail again when Python flushes it at exit.
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), sys.stdout.fileno())
            raise UsageError(f"standard output: {error.strerror}") from error

    return write


def _screen(
    stack: contextlib.ExitStack, out: Console, columns: list[LiveColumn] | None, *, live: bool
) -> Callable[[LiveSample], None]:
    before: LiveSample | None = None
    screen = None
    if live and out.is_terminal:
        screen = stack.enter_context(Live(console=out, auto_refresh=False, screen=True))

    def show(sample: LiveSample) -> None:
        nonlocal before
        group = draw(LiveInterval(sample, before), columns, out.width)
        before = sample
        if screen is not None:
            screen.update(group, refresh=True)
        else:
            out.print(group)

    return show
