# SPDX-License-Identifier: Apache-2.0
"""esxtop's screen and batch layout from samples."""

from __future__ import annotations

import csv
import io
from dataclasses import fields, replace
from datetime import UTC, datetime

import pytest

from memvirt.observe.batch import HEADING, BatchWriter
from memvirt.observe.esxtop import (
    BY_NAME,
    COLUMNS,
    PRIORITY,
    Interval,
    cell,
    choose_columns,
    header_lines,
    time_line,
)
from memvirt.vmkernel.samples import HostState

from .samples import sample


def test_amounts_are_mebibytes_and_rates_are_over_virtual_time() -> None:
    first, second = sample(0, swap_reads=256), sample(500_000_000, swap_reads=768)
    interval = Interval(second, first)
    vm = second.vms[0]
    assert cell(BY_NAME["MEMSZ"], interval, vm) == "64.0"
    assert cell(BY_NAME["CNSM"], interval, vm) == "16.0"
    assert cell(BY_NAME["SWCUR"], interval, vm) == "1.0"
    assert cell(BY_NAME["SWR/s"], interval, vm) == "4.0"
    assert cell(BY_NAME["SWR/s"], Interval(first), first.vms[0]) == "0.0"
    assert cell(BY_NAME["MCTL?"], interval, vm) == "Y"


def test_header_lines() -> None:
    lines = header_lines(Interval(sample(1_000_000_000, swap_reads=512), sample(0)))
    assert [line.split("/")[0].strip() for line in lines] == [
        "PMEM", "VMKMEM", "PSHARE", "SWAP", "ZIP", "MEMCTL",
    ]  # fmt: skip
    assert "100.0 total" in lines[0]
    assert "10.0 free" in lines[0]
    assert lines[1].endswith("soft state")
    assert "6.0 minfree" in lines[1]
    assert "4.00 r/s" in lines[3]
    assert "overcommitted 1.28 x" in time_line(Interval(sample(0)), 0.0)


@pytest.mark.parametrize("width", [40, 80, 140, 200, 400])
def test_columns_fit_the_terminal(width: int) -> None:
    columns = choose_columns(width, 10)
    assert columns[0].name == "NAME"
    assert [c.name for c in columns] == [c.name for c in COLUMNS if c in columns]
    used = sum(max(len(column.name), 6) + 2 for column in columns)
    assert used <= width + 8


def test_every_column_has_its_place() -> None:
    assert sorted(PRIORITY) == sorted(BY_NAME)
    assert len(BY_NAME) == len(COLUMNS)
    counters = [column.counter for column in COLUMNS if column.counter]
    assert len(set(counters)) == len(counters)


def test_batch_rows_can_be_read_and_late_vms_are_empty_first() -> None:
    text = io.StringIO()
    writer = BatchWriter(text, "host1", ["one", "two"], datetime(2026, 11, 24, 10, 0, tzinfo=UTC))
    writer.write(sample(0, names=("one",)))
    writer.write(sample(1_500_000_000, swap_reads=384))
    heading, first, second = csv.reader(io.StringIO(text.getvalue()))
    assert heading[0] == HEADING
    assert "\\\\host1\\Memory\\Free MBytes" in heading
    assert len(heading) == len(first) == len(second)
    of_two = heading.index("\\\\host1\\Group Memory(2:two)\\Memory Size MBytes")
    assert (first[of_two], second[of_two]) == ("", "64.00")
    assert second[0] == "11/24/2026 10:00:01"  # whole seconds, as esxtop's
    exact = heading.index("\\\\host1\\Memory\\Sample Time Seconds")
    assert (first[exact], second[exact]) == ("0.000", "1.500")
    reads = heading.index("\\\\host1\\Group Memory(1:one)\\Swap Read MBytes/sec")
    assert (first[reads], second[reads]) == ("0.00", "1.00")


def test_names_keep_counter_paths_unambiguous() -> None:
    text = io.StringIO()
    BatchWriter(text, "host1", ['a"b', "c\\d(e),f"], datetime(2026, 11, 24, tzinfo=UTC))
    (heading,) = csv.reader(io.StringIO(text.getvalue()))
    assert heading == text.getvalue().strip().strip('"').split('","')  # no cell needs quoting
    groups = {path.split("\\")[3] for path in heading if "Group Memory" in path}
    assert groups == {"Group Memory(1:a'b)", "Group Memory(2:c_d[e];f)"}


def test_header_lines_fit_80_columns() -> None:
    """On a host of 64 GiB, with all numbers as long as they get."""
    small = sample(2_000_000_000)
    numbers = {field.name: 16 << 20 for field in fields(small.host) if field.name != "state"}
    big = replace(small.host, **numbers, state=HostState.CLEAR)  # type: ignore[arg-type]
    interval = Interval(replace(small, host=big))
    for line in (*header_lines(interval), time_line(interval, 3600.0)):
        assert len(line) <= 80, line
