# SPDX-License-Identifier: Apache-2.0
"""``memvirt run``: a scenario, on a terminal, as batch output, or into files."""

from __future__ import annotations

import contextlib
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from memvirt import __version__
from memvirt.host.host import Host, HostInterrupted
from memvirt.input_file import read_input_text
from memvirt.observe.batch import BatchWriter
from memvirt.observe.esxtop import BY_NAME, Column
from memvirt.observe.record import EventWriter, Recorder
from memvirt.observe.summary import Summary
from memvirt.output_file import check_outputs
from memvirt.scenario.keys import names_of
from memvirt.scenario.scenario import Scenario, load_scenario
from memvirt.vmkernel.samples import Sample

from .columns import columns_named
from .errors import INTERRUPTED
from .interruption import Interruption
from .live import Screen, print_summary
from .ready import make_ready
from .web import serve_host

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
    web: str | None = None  # address to serve the page at, empty for a free port


def vm_names(scenario: Scenario) -> list[str]:
    """Names of all VMs of the scenario, started or not."""
    return [name for vm in scenario.vm for name in names_of(vm)]


def _batch_output(scenario: Scenario) -> Callable[[Sample], None]:
    """Writes samples to standard output; the header is written now."""
    writer = BatchWriter(
        sys.stdout, platform.node() or "memvirt", vm_names(scenario), datetime.now(UTC)
    )
    sys.stdout.flush()
    return writer.write


def run(options: RunOptions) -> int:
    """Run a scenario; the exit status is 0 only if every guest verified its memory."""
    scenario = load_scenario(options.scenario)
    columns = columns_named(options.columns, BY_NAME)
    check_outputs(
        {"--record": options.record, "--events": options.events},
        {"the scenario": options.scenario},
    )
    make_ready()
    out = Console(stderr=options.batch)
    if not out.is_terminal:
        out = Console(stderr=options.batch, width=_PLAIN_WIDTH)
    started = time.monotonic()
    summary = Summary()
    watchers: list[Callable[[Sample], None]] = [summary.see]
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        host = stack.enter_context(Host(scenario))
        if options.events is not None:
            stack.enter_context(EventWriter(host.events, options.events))
        if options.record is not None:
            recorder = Recorder(
                options.record,
                scenario=read_input_text(options.scenario),
                name=options.scenario.stem,
                version=__version__,
            )
            watchers.append(stack.enter_context(recorder).add)
        if options.batch:
            watchers.append(_batch_output(scenario))

        def on_sample(sample: Sample) -> None:
            for watch in watchers:
                watch(sample)

        try:
            _run_host(host, scenario, out, columns, on_sample, options, interruption)
        except HostInterrupted:
            print("memvirt: interrupted", file=sys.stderr)
            return INTERRUPTED
        print_summary(out, host, summary, time.monotonic() - started)
        return 0 if host.succeeded else 1


def _run_host(
    host: Host,
    scenario: Scenario,
    out: Console,
    columns: list[Column] | None,
    on_sample: Any,
    options: RunOptions,
    interruption: Interruption,
) -> None:
    def interrupted() -> bool:
        return interruption.asked

    if options.web is not None:
        serve_host(
            host,
            title=options.scenario.stem,
            address=options.web,
            on_sample=on_sample,
            interval=options.interval,
            interruption=interruption,
            columns=[column.name for column in columns or ()],
        )
        return
    if options.batch or not out.is_terminal:
        host.run(
            on_sample=on_sample,
            sample_interval=options.interval,
            interrupted=interrupted,
            wait=interruption.wait,
        )
        return
    screen = Screen(host, vm_names(scenario), columns)
    with Live(console=out, auto_refresh=False, transient=True) as live:

        def redraw() -> None:
            live.update(screen.draw(out.width, out.height), refresh=True)

        host.run(
            redraw,
            on_sample=on_sample,
            sample_interval=options.interval,
            interrupted=interrupted,
            wait=interruption.wait,
        )
