# SPDX-License-Identifier: Apache-2.0
"""Memory dumps and records of runs: changed, and read as ``analyze``, ``plan`` and ``web`` do."""

from __future__ import annotations

import io
import json
import random
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from memvirt.host.host import Host
from memvirt.observe.record import Recorder
from memvirt.plan.content.analysis import analyze
from memvirt.plan.executor import InProcess
from memvirt.plan.fleet import assemble
from memvirt.plan.readers.detect import read_files
from memvirt.scenario.scenario import parse_scenario
from memvirt.web.record_source import RecordSource
from tests.plan.test_content import elf, kdump, lime

from .case import Case, Verdict
from .files import SMALL_SCENARIO, refusal
from .mutations import WIDEST, change_bytes

_DUMP, _RECORD = "memory", "record"


def _quiet(_: str) -> Any:
    return lambda done, total: None


# Dumps -----------------------------------------------------------------------------------------


def make_dump(draw: random.Random) -> Case:
    """A dump of a few pages, most changes in its headers."""
    pages = b"".join(
        draw.choice((bytes(4096), draw.randbytes(4096), b"text " * 819 + b".")) for _ in range(8)
    )
    ranges = [(0x1000, pages[: 3 << 12]), (0x10_0000, pages[3 << 12 :])]
    writers: tuple[Callable[[Path], object], ...] = (
        lambda path: elf(path, ranges),
        lambda path: lime(path, ranges),
        lambda path: kdump(path, ranges, flat=False, pack=zlib.compress),
        lambda path: kdump(path, ranges, flat=True, pack=zlib.compress),
        lambda path: kdump(path, ranges, flat=False, pack=draw.randbytes(3000).__add__, flag=4),
        lambda path: path.write_bytes(pages),
    )
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / _DUMP
        draw.choice(writers)(path)
        good = path.read_bytes()
    first = draw.choice((64, 512, 5000, None))
    return Case("dump", {_DUMP: change_bytes(draw, good, first=first)})


def run_dump(case: Case) -> Verdict:
    """Analyze it."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / _DUMP
        path.write_bytes(case.files[_DUMP])
        try:
            found = analyze([path], InProcess(), _quiet)
        except Exception as error:
            return refusal(error)
    if found.pages != sum(found.classes.values()):
        return Verdict(False, "pages are lost", f"{found.pages}: {found.classes}")
    return Verdict(True, "analyzed")


# Records ---------------------------------------------------------------------------------------


@cache
def _good_record() -> bytes:
    """Three samples of a small host."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / _RECORD
        with (
            Host(parse_scenario(SMALL_SCENARIO, "small")) as host,
            Recorder(path, scenario=SMALL_SCENARIO, name="small", version="0") as recorder,
        ):
            for _ in range(3):
                host.step()
                recorder.add(host.sample())
        return path.read_bytes()


def _strange_column(draw: random.Random, column: pa.ChunkedArray) -> pa.Array:
    """A column with a strange value in it, or of another type."""
    values = column.to_pylist()
    at = draw.randrange(len(values))
    choice = draw.randrange(5)
    if choice == 0:
        values[at] = None
    elif choice == 1:
        return pa.array([draw.choice(("", "\x1b[2J", "high", "1e9", "x" * 5000))] * len(values))
    elif choice == 2:
        return pa.array([draw.choice((float("nan"), float("inf"), -1.5, 1e300))] * len(values))
    elif choice == 3:
        return pa.array([[1, 2]] * len(values))
    elif pa.types.is_integer(column.type):
        values[at] = draw.choice((-1, -(1 << 62), *(word for word in WIDEST if word < 1 << 63)))
    elif pa.types.is_floating(column.type):
        values[at] = draw.choice((float("nan"), float("inf"), -1.0, 1e300))
    else:
        values[at] = None
    return pa.array(values, column.type)


def make_record(draw: random.Random) -> Case:
    good = _good_record()
    if draw.random() < 0.3:
        return Case("record", {_RECORD: change_bytes(draw, good)})
    table = pq.read_table(io.BytesIO(good))
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(table.num_columns)
        name = table.column_names[at]
        if draw.random() < 0.15:
            table = table.remove_column(at)
        else:
            table = table.set_column(at, name, _strange_column(draw, table.column(at)))
    if draw.random() < 0.2:
        about = json.loads(table.schema.metadata[b"memvirt"])
        about[draw.choice(list(about))] = draw.choice((None, 1, [], "\x1b[2J", {}, "x" * 9999))
        table = table.replace_schema_metadata({"memvirt": json.dumps(about)})
    if draw.random() < 0.1:
        table = table.slice(0, draw.choice((0, 1)))
    out = io.BytesIO()
    pq.write_table(table, out)
    return Case("record", {_RECORD: out.getvalue()})


def run_record(case: Case) -> Verdict:
    """Plan with it, and look at its last moment in a browser."""
    refused = None
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / _RECORD
        path.write_bytes(case.files[_RECORD])
        for read in (_plan, _look):
            try:
                read(path)
            except Exception as error:
                refused = refusal(error)
                if not refused.good:
                    return refused
    return refused or Verdict(True, "read")


def _plan(path: Path) -> None:
    assemble(read_files([path]))


def _look(path: Path) -> None:
    source = RecordSource(path)
    source.series()
    source.at(1)
