# SPDX-License-Identifier: Apache-2.0
"""``memvirt analyze``: dumps in, a table, JSON, Parquet or an HTML report out."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from memvirt.plan.content import report as rows
from memvirt.plan.content.analysis import Analysis, Share, analyze
from memvirt.plan.content.page_file import PageFile
from memvirt.plan.executor import Progress, executor, suitable_workers
from memvirt.size import format_size, parse_size

from .errors import UsageError
from .interruption import interrupts_raise
from .plan import check_results, console, print_table, progress_bar, write_results

_PAGES_A_SECOND = 300_000  # of one core, roughly
_PAIRS_SHOWN = 8


@dataclass(frozen=True)
class AnalyzeOptions:
    """The options of ``memvirt analyze``."""

    dumps: list[Path]
    vms: list[str] = field(default_factory=list)
    rate: str = "256M"
    share: str = "all"
    pages: Path | None = None
    scratch: Path | None = None
    workers: int = 0
    scheduler: str | None = None
    memory_per_worker: str = "auto"
    json: Path | None = None
    html: Path | None = None


def analyze_dumps(options: AnalyzeOptions) -> None:
    """Raises DumpError, LiveError, SchedulerError or UsageError."""
    interrupts_raise()
    if not options.dumps and not options.vms:
        raise UsageError("nothing to analyze: name dumps, or live VMs by --vm NAME")
    if options.scratch is not None and not options.scratch.is_dir():
        raise UsageError(f"--scratch {options.scratch}: is no folder; make it, or name another")
    dumps = _files(options.dumps)
    check_results({"--json": options.json, "--html": options.html, "--pages": options.pages}, dumps)
    if options.vms:
        with tempfile.TemporaryDirectory(prefix="memvirt-live-", dir=options.scratch) as folder:
            _analyze(options, dumps, copy_live_vms(options.vms, options.rate, Path(folder)))
    else:
        _analyze(options, dumps, {})


def copy_live_vms(names: list[str], rate: str, folder: Path) -> dict[Path, str]:
    """Copy live VMs into ``folder``, one after the other; their names by file. What could not be
    read of one is a line. Raises LiveError, UsageError."""
    from memvirt.live.discovery import discover, find_vm  # noqa: PLC0415  only for live VMs
    from memvirt.live.vm import open_kernel_pages  # noqa: PLC0415
    from memvirt.plan.dumps.live import copy_live_vm  # noqa: PLC0415

    bytes_a_second = parse_size(rate, what="--rate")
    there = discover()
    found = [find_vm(name, there) for name in names]
    twice = [vm.name for vm in found if found.count(vm) > 1]
    if twice:
        raise UsageError(f"--vm {twice[0]}: named twice; each VM counts once")
    kernel, _ = open_kernel_pages()
    copies = {}
    try:
        for vm in found:
            with progress_bar(f"reading {vm.name}") as bar:
                copy = copy_live_vm(vm, folder, bytes_a_second, kernel, bar)
            copies[copy.path] = copy.name
            if copy.missing:
                console().print(
                    f"{copy.name}: {format_size(copy.missing * 4096)} not read: "
                    f"{copy.swapped} pages swapped by the host, {copy.paged} kept by a pager, "
                    f"{copy.unseen} that this user may not see",
                    style="yellow", markup=False,
                )  # fmt: skip
    finally:
        if kernel is not None:
            kernel.close()
    return copies


def _analyze(options: AnalyzeOptions, dumps: list[Path], live: dict[Path, str]) -> None:
    dumps = [*dumps, *live]
    size = sum(path.stat().st_blocks * 512 for path in dumps) / 4096
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
            names = [live.get(path, str(path)) for path in dumps]
            on_pages = stack.enter_context(PageFile(options.pages, names))
        found = analyze(
            dumps, where, _bars(stack), share=Share(options.share), scratch=options.scratch,
            on_pages=on_pages, live=live,
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
    out.print(f"{rows.sources(found)}, {format_size(found.pages * 4096)}")
    print_table(
        out,
        rows.VM_HEADINGS,
        [*(rows.vm_row(vm) for vm in found.vms), rows.total_row(found)],
        left=2,
    )
    out.print()
    print_table(out, rows.SAVINGS_HEADINGS, rows.savings_rows(found))
    if found.uses:
        out.print("\nWhat Linux guests use their pages for")
        print_table(out, rows.USE_HEADINGS, rows.use_rows(found))
        out.print()
        print_table(out, rows.VM_USE_HEADINGS, rows.vm_use_rows(found))
    for line in rows.use_problems(found):
        out.print(line, style="dim", markup=False)
    if found.partners:
        out.print("\nVMs to put together")
        print_table(out, rows.PAIR_HEADINGS, rows.pair_rows(found, _PAIRS_SHOWN), left=2)
