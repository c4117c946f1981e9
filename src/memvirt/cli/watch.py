# SPDX-License-Identifier: Apache-2.0
"""``memvirt watch``: the live VMs of this host on a terminal, as batch output, or in a record."""

from __future__ import annotations

import contextlib
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from memvirt import __version__
from memvirt.live.discovery import DiscoveredVm, discover, find_vm
from memvirt.live.errors import VmNotFound
from memvirt.live.live_sample import LiveHostMemory, LiveSample, LiveVmMemory
from memvirt.live.watch import LiveHost
from memvirt.live.working_set_way import DEFAULT_PERIOD_SECONDS, WorkingSetWay
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
from memvirt.output_file import check_outputs

from .columns import columns_named, table_of
from .interruption import Interruption

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


def chosen_vms(names: Sequence[str]) -> list[DiscoveredVm]:
    """The VMs called ``names``, or all. Raises VmNotFound for a name no VM has."""
    vms = discover()
    return [find_vm(name, vms) for name in names] if names else vms


def live_table(interval: LiveInterval, columns: Sequence[LiveColumn]) -> Table:
    """A row for each VM."""
    styles = {"unreachable": "dim", "unknown": "yellow", "paused": "red"}
    return table_of(
        (column.name for column in columns),
        LIVE_TEXT_COLUMNS,
        (
            ([live_cell(column, interval, vm) for column in columns], styles.get(vm.condition, ""))
            for vm in interval.now.vms
        ),
    )


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
    columns = columns_named(options.columns, LIVE_BY_NAME)
    check_outputs({"--record": options.record}, {})
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
        interruption = stack.enter_context(Interruption())
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
        _loop(host, output, options.interval, iterations, interruption)
    return 0


def _loop(
    host: LiveHost,
    output: _Output,
    interval: float,
    iterations: int | None,
    interruption: Interruption,
) -> None:
    done = 0
    while not interruption.asked:
        output.write(host.sample())
        done += 1
        if iterations is not None and done >= iterations:
            return
        interruption.sleep(interval)


def _batch(vms: Sequence[DiscoveredVm]) -> Callable[[LiveSample], None]:
    names = [vm.name for vm in vms]
    writer = LiveBatchWriter(sys.stdout, platform.node() or "memvirt", names, datetime.now(UTC))
    told: set[str] = set()

    def write(sample: LiveSample) -> None:
        for vm in sample.vms:
            if vm.name not in names and vm.name not in told:
                told.add(vm.name)
                print(f"memvirt: {vm.name} started later: it has no columns", file=sys.stderr)
        writer.write(sample)

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
