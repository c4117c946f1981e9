# SPDX-License-Identifier: Apache-2.0
"""``memvirt run``: a scenario, on a terminal, as batch output, or into files."""

from __future__ import annotations

import contextlib
import platform
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from memvirt import __version__
from memvirt.host import Host
from memvirt.observe.batch import BatchWriter
from memvirt.observe.esxtop import BY_NAME, Column
from memvirt.observe.record import Recorder, export_events
from memvirt.observe.summary import Summary
from memvirt.scenario import Scenario, load_scenario
from memvirt.vmkernel.statistics import Sample

from .errors import UsageError
from .live import Screen, print_summary

INTERRUPTED = 130
_PLAIN_WIDTH = 150


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of ``memvirt run``."""

    scenario: Path
    batch: bool = False
    interval: float = 0.05
    record: Path | None = None
    events: Path | None = None
    columns: str = ""


def parse_columns(text: str) -> list[Column] | None:
    """Columns by their names, separated by commas. Raises UsageError for an unknown one."""
    if not text:
        return None
    chosen = []
    for name in text.split(","):
        column = BY_NAME.get(name.strip().upper())
        if column is None:
            raise UsageError(f"--columns: no column {name.strip()}; there are {','.join(BY_NAME)}")
        chosen.append(column)
    return chosen


def _check_target(path: Path | None) -> None:
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: the directory {path.absolute().parent} does not exist")


def vm_names(scenario: Scenario) -> list[str]:
    """Names of all VMs of the scenario, started or not."""
    return [
        vm.name if vm.count == 1 else f"{vm.name}-{number}"
        for vm in scenario.vm
        for number in range(1, vm.count + 1)
    ]


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: swap files are removed, records completed."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(options: RunOptions) -> int:
    """Run a scenario; the exit status is 0 only if every guest verified its memory."""
    scenario = load_scenario(options.scenario)
    columns = parse_columns(options.columns)
    _check_target(options.record)
    _check_target(options.events)
    out = Console(stderr=options.batch)
    if not out.is_terminal:
        out = Console(stderr=options.batch, width=_PLAIN_WIDTH)
    started = time.monotonic()
    summary = Summary()
    watchers = [summary.see]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_terminate_as_interrupt())
        host = stack.enter_context(Host(scenario))
        if options.record is not None:
            recorder = Recorder(
                options.record,
                scenario=options.scenario.read_text(encoding="utf-8"),
                name=options.scenario.stem,
                version=__version__,
            )
            watchers.append(stack.enter_context(recorder).add)
        if options.batch:
            writer = BatchWriter(
                sys.stdout, platform.node() or "memvirt", vm_names(scenario), datetime.now(UTC)
            )
            watchers.append(writer.write)

        def on_sample(sample: Sample) -> None:
            for watch in watchers:
                watch(sample)

        try:
            _run_host(host, scenario, out, columns, on_sample, options)
        except KeyboardInterrupt:
            print("memvirt: interrupted", file=sys.stderr)
            return INTERRUPTED
        finally:
            if options.events is not None:
                export_events(host.events, options.events)
        print_summary(out, host, summary, time.monotonic() - started)
        return 0 if host.succeeded else 1


def _run_host(
    host: Host,
    scenario: Scenario,
    out: Console,
    columns: list[Column] | None,
    on_sample: Any,
    options: RunOptions,
) -> None:
    if options.batch or not out.is_terminal:
        host.run(on_sample=on_sample, sample_interval=options.interval)
        return
    screen = Screen(host, vm_names(scenario), columns)
    with Live(console=out, auto_refresh=False, transient=True) as live:

        def redraw() -> None:
            live.update(screen.draw(out.width, out.height), refresh=True)

        host.run(redraw, on_sample=on_sample, sample_interval=options.interval)
