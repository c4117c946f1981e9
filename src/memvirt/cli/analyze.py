# SPDX-License-Identifier: Apache-2.0
"""``memvirt analyze``: dumps in, a table, JSON, Parquet or an HTML report out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from memvirt.plan.content import report as rows
from memvirt.plan.content.analysis import Analysis, Share, analyze
from memvirt.plan.content.page_file import PageFile
from memvirt.plan.executor import Progress, executor, suitable_workers
from memvirt.size import format_size

from .errors import UsageError
from .plan import check_results, console, print_table, progress_bar, write_results

_PAGES_A_SECOND = 300_000  # of one core, roughly
_PAIRS_SHOWN = 8


@dataclass(frozen=True)
class AnalyzeOptions:
    """The options of ``memvirt analyze``."""

    dumps: list[Path]
    share: str = "all"
    pages: Path | None = None
    scratch: Path | None = None
    workers: int = 0
    scheduler: str | None = None
    memory_per_worker: str = "auto"
    json: Path | None = None
    html: Path | None = None


def analyze_dumps(options: AnalyzeOptions) -> None:
    """Raises DumpError, SchedulerError or UsageError."""
    dumps = _files(options.dumps)
    check_results({"--json": options.json, "--html": options.html, "--pages": options.pages}, dumps)
    size = sum(path.stat().st_size for path in dumps) / 4096
    workers = options.workers or suitable_workers(size / _PAGES_A_SECOND)
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(
            executor(
                workers=workers, scheduler=options.scheduler,
                memory_per_worker=options.memory_per_worker,
            )
        )  # fmt: skip
        on_pages = None
        if options.pages is not None:
            on_pages = stack.enter_context(PageFile(options.pages, [str(p) for p in dumps]))
        found = analyze(
            dumps, where, _bars(stack), share=Share(options.share), scratch=options.scratch,
            on_pages=on_pages,
        )  # fmt: skip
    write_results(
        options.json, options.html, json.dumps(asdict(found)), rows.analysis_report(found)
    )
    if str(options.json) != "-":
        print_analysis(console(), found)


def _bars(stack: contextlib.ExitStack) -> Callable[[str], Progress]:
    """A progress bar for one step after another: each ends the one before."""
    current = stack.enter_context(contextlib.ExitStack())

    def bar(what: str) -> Progress:
        current.close()
        return current.enter_context(progress_bar(what))

    return bar


def _files(paths: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
            if not inside:
                raise UsageError(f"{path}: is an empty folder; name dumps, or a folder of dumps")
            files += inside
        else:
            files.append(path)
    twice = [path for path in files if files.count(path) > 1]
    if twice:
        raise UsageError(f"{twice[0]}: named twice; each dump counts once")
    return files


def print_analysis(out: Console, found: Analysis) -> None:
    """The analysis on a terminal."""
    out.print(f"{len(found.vms)} dumps, {format_size(found.pages * 4096)}")
    print_table(
        out,
        rows.VM_HEADINGS,
        [*(rows.vm_row(vm) for vm in found.vms), rows.total_row(found)],
        left=2,
    )
    out.print()
    print_table(out, rows.SAVINGS_HEADINGS, rows.savings_rows(found))
    if found.partners:
        out.print("\nVMs to put together")
        print_table(out, rows.PAIR_HEADINGS, rows.pair_rows(found, _PAIRS_SHOWN), left=2)
