# SPDX-License-Identifier: Apache-2.0
"""``memvirt plan``: files in, a table, JSON or an HTML report out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from memvirt.output_file import check_outputs, write_text
from memvirt.plan.answer import PlanAnswer
from memvirt.plan.executor import Progress as Report
from memvirt.plan.executor import executor, suitable_workers
from memvirt.plan.findings import Finding, Severity
from memvirt.plan.fleet import Fleet, assemble
from memvirt.plan.planner import answer, touched
from memvirt.plan.question import Question, apply_what_if
from memvirt.plan.readers.detect import read_files
from memvirt.plan.report_html import (
    HOST_HEADINGS,
    HOURS_MEAN,
    WHAT_IF_HEADINGS,
    advice,
    counted,
    host_row,
    length,
    plan_report,
    vm_headings,
    vm_row,
    what_if_row,
)

from .interruption import interrupts_raise

_FINDINGS_SHOWN, _HOSTS_SHOWN, _VMS_SHOWN = 12, 12, 15
_PLAIN_WIDTH = 130
_SECONDS_A_POINT = 2e-8  # of one VM, interval and draw, on one core: what a plan takes, roughly


@dataclass(frozen=True)
class PlanOptions:
    """The options of ``memvirt plan`` that are no part of the question."""

    files: list[Path]
    what_ifs: list[str]
    interval: float | None = None
    workers: int = 0
    scheduler: str | None = None
    memory_per_worker: str = "auto"
    json: Path | None = None
    html: Path | None = None
    clusters: tuple[str, ...] = ()


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Report]:
    """A progress bar on standard error, if that is a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield report


def plan(question: Question, options: PlanOptions) -> int:
    """Answer; the exit status is 0 if the VMs fit in all draws, 1 if not."""
    interrupts_raise()
    check_results({"--json": options.json, "--html": options.html}, options.files)
    with Console(stderr=True).status("reading"):
        fleet = assemble(
            read_files(options.files), interval=options.interval, clusters=options.clusters
        )
    asked = [(apply_what_if(question, text), f"what if {text}") for text in options.what_ifs]
    work = fleet.in_use.size * question.draws * (1 + len(asked)) * _SECONDS_A_POINT
    workers = options.workers or suitable_workers(work)
    with executor(
        workers=workers, scheduler=options.scheduler, memory_per_worker=options.memory_per_worker
    ) as where:
        with progress_bar("hosts") as report:
            found = answer(fleet, question, where, report)
        others = []
        for other, label in asked:
            with progress_bar(label) as report:
                others.append(answer(fleet, other, where, report, label))
    found = replace(found, what_ifs=tuple(others))
    write_results(options.json, options.html, json.dumps(found.as_json()), plan_report(found))
    if options.json is None or str(options.json) != "-":
        print_answer(found, fleet)
    return 0 if found.fits == 1 else 1


def write_results(json_path: Path | None, html_path: Path | None, as_json: str, html: str) -> None:
    """Write the wanted files; "-" is standard output. Raises OutputFileError."""
    for path, text in ((json_path, as_json), (html_path, html)):
        if path is None:
            continue
        if str(path) == "-":
            print(text)
        else:
            write_text(path, text)


def check_results(outputs: dict[str, Path | None], inputs: list[Path]) -> None:
    """Say now what could not be written in the end; "-" can be. Raises OutputFileError."""
    check_outputs(
        {name: path for name, path in outputs.items() if str(path) != "-"},
        {str(path): path for path in inputs},
    )


def console() -> Console:
    """Standard output, wide enough for tables where it is no terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(width=_PLAIN_WIDTH, highlight=False)


def print_table(
    out: Console, headings: tuple[str, ...], rows: list[tuple[str, ...]], left: int = 1
) -> None:
    """A table without lines, numbers to the right of the first ``left`` columns of text."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def print_findings(out: Console, findings: tuple[Finding, ...]) -> None:
    """Warnings first; the rest are counted."""
    ordered = sorted(findings, key=lambda finding: finding.severity is Severity.NOTE)
    for finding in ordered[:_FINDINGS_SHOWN]:
        out.print(str(finding), style="yellow" if finding.severity is Severity.WARNING else "dim",
                  markup=False)  # fmt: skip
    if len(ordered) > _FINDINGS_SHOWN:
        out.print(f"and {len(ordered) - _FINDINGS_SHOWN} more (all are in --json and --html)")


def print_answer(found: PlanAnswer, fleet: Fleet) -> None:
    """The answer on a terminal."""
    out = console()
    print_findings(out, found.findings)
    out.print(
        f"{counted(len(fleet.vms), 'VM')}, {length(found)}, {found.draws} draws, seed {found.seed}"
    )
    for name, text in found.assumptions.items():
        out.print(f"  {name}: {text}", style="dim", markup=False)
    out.print(f"\n{found.question}\n[bold]{found.verdict}[/bold]")
    if found.fewest_hosts is not None:
        bound, number = found.fewest_hosts
        fewest = counted(round(number), "host")
        out.print(f"{fewest}; no placement can do with less than {bound:.0f}")
    for name, why in list(found.refused.items())[:_HOSTS_SHOWN]:
        out.print(f"  {name}: {why}", markup=False)
    if found.failover is not None:
        out.print(f"worst case of {found.failover.failures} failing: {found.failover.detail}")
    hosts = sorted(found.hosts, key=lambda host: (host.fits, host.lowest_free_mib[0]))
    out.print()
    print_table(out, HOST_HEADINGS, [host_row(host) for host in hosts[:_HOSTS_SHOWN]])
    if len(hosts) > _HOSTS_SHOWN:
        out.print(f"and {len(hosts) - _HOSTS_SHOWN} more hosts that are better off")
    for host in [host for host in hosts if host.fits < 1][:3]:
        out.print(f"\n{host.name}, {host.limiting_hour}: {host.why}. {advice(host)}", markup=False)
    vms = touched(found.vms)
    if vms:
        out.print(f"\n{HOURS_MEAN[found.points == 1]}:")
        rows = [vm_row(vm, moment=found.points == 1) for vm in vms[:_VMS_SHOWN]]
        print_table(out, vm_headings(moment=found.points == 1), rows)
        if len(vms) > _VMS_SHOWN:
            out.print(f"and {len(vms) - _VMS_SHOWN} more VMs that lose less")
    if found.what_ifs:
        out.print()
        rows = [what_if_row(other) for other in (found, *found.what_ifs)]
        print_table(out, WHAT_IF_HEADINGS, rows, left=2)
