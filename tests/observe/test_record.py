# SPDX-License-Identifier: Apache-2.0
"""Records and exported events: complete, or not there."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from memvirt.observe.record import EventWriter, Recorder, RecordError, read_record
from memvirt.observe.summary import Summary
from memvirt.vmkernel.events import EventLog, Mechanism

from .samples import sample


def record(path: Path) -> Recorder:
    return Recorder(path, scenario="[machine]", name="test", version="1")


def test_what_is_recorded_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    with record(path) as recorder:
        recorder.add(sample(0, names=("one",)))
        recorder.add(sample(7, swap_reads=3))
        assert not path.exists()
    columns, about = read_record(path)
    assert about["scenario"] == "[machine]"
    assert columns["name"].tolist() == ["one", "one", "two"]
    assert columns["host_time_ns"].tolist() == [0, 7, 7]
    assert columns["swap_reads_total"].tolist() == [0, 3, 3]
    assert columns["host_state"].tolist() == ["soft"] * 3
    assert columns["consumed"].tolist() == [4096.0] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["run.parquet"]


def test_an_interrupted_run_leaves_a_complete_record(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"

    def interrupted() -> None:
        with record(path) as recorder:
            recorder.add(sample(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_record(path)[0]["name"].tolist() == ["one", "two"]


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"no")
    with pytest.raises(RecordError, match=r"x\.parquet"):
        read_record(path)
    with pytest.raises(RecordError, match=r"missing\.parquet"):
        read_record(tmp_path / "missing.parquet")


def test_the_event_log_is_bounded_and_its_file_complete(tmp_path: Path) -> None:
    log = EventLog(3)
    log.record(0, "vm0", Mechanism.SWAP, 0, 'why, "exactly"')  # before anybody listens
    with EventWriter(log, tmp_path / "e.jsonl") as lines, EventWriter(log, tmp_path / "e.csv"):
        for number in range(1, 5):
            log.record(number, f"vm{number}", Mechanism.SWAP, number, 'why, "exactly"')
    assert (len(log), log.lost, log.recorded) == (3, 2, 5)
    assert [event.time_ns for event in log.since(4)] == [4]
    assert [event.time_ns for event in log.since(0)] == [2, 3, 4]
    assert lines.written == 5
    rows = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    with (tmp_path / "e.csv").open(newline="") as file:
        other = list(csv.DictReader(file))
    assert (
        [row["vm"] for row in rows]
        == [row["vm"] for row in other]
        == [f"vm{number}" for number in range(5)]
    )
    assert rows[0]["mechanism"] == other[0]["mechanism"] == "swap"
    assert rows[0]["reason"] == other[0]["reason"] == 'why, "exactly"'


def test_a_summary_keeps_the_most() -> None:
    summary = Summary()
    summary.see(sample(0))
    summary.see(sample(1, names=("one",)))
    assert summary.vms["two"].swapped == 256
    assert summary.in_use == 2 * (8192 + 256)
