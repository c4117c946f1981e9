# SPDX-License-Identifier: Apache-2.0
"""``memvirt run`` as a user calls it."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memvirt.observe.record import read_record

SCENARIO = """
[machine]
memory = "20M"
state_directory = "state"
quantum_ms = 2
Mem.ShareScanTime = 0.01
[[vm]]
name = "a"
count = 2
memory = "16M"
group = "g"
append = "workload=fill passes={passes} varied=30"
[[vm]]
name = "late"
memory = "8M"
paging = "shadow"
start = 0.02
append = "workload=idle percent=40 ticks={ticks}"
"""
COMMAND = [sys.executable, "-m", "memvirt", "run"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s.toml").write_text(SCENARIO.format(passes=2, ticks=2))
    (tmp_path / "long.toml").write_text(SCENARIO.format(passes=100_000, ticks=100_000))
    return tmp_path


def memvirt(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def test_batch_prints_csv_and_nothing_else(folder: Path) -> None:
    done = memvirt(
        folder, "s.toml", "--batch", "--interval", "0.01", "--record", "r.parquet",
        "--events", "e.jsonl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = list(csv.reader(io.StringIO(done.stdout)))
    assert rows[0][0] == "(PDH-CSV 4.0) (UTC)(0)"
    assert len({len(row) for row in rows}) == 1
    late = next(i for i, name in enumerate(rows[0]) if "(3:late)" in name)
    assert rows[1][late] == ""
    assert rows[-1][late] == "8.00"
    assert "3 of 3 guests verified their memory; 0 broken invariants" in done.stderr
    columns, about = read_record(folder / "r.parquet")
    assert len(set(columns["host_time_ns"].tolist())) == len(rows) - 1
    assert about["name"] == "s"
    events = [json.loads(line) for line in (folder / "e.jsonl").read_text().splitlines()]
    assert {"power on", "power off", "swap"} <= {event["mechanism"] for event in events}
    assert not (folder / "state").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(folder: Path, sent: signal.Signals) -> None:
    process = subprocess.Popen(
        [*COMMAND, "long.toml", "--record", "r.parquet"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not list((folder / "state").glob("memvirt-late*.vswp")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.strip().endswith("memvirt: interrupted")
    assert not (folder / "state").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["long.toml", "r.parquet", "s.toml"]
    assert read_record(folder / "r.parquet")[0]["name"].size > 0


def test_the_live_screen_on_a_terminal(folder: Path) -> None:
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "s.toml", "--columns", "name,SWCUR,SWR/s,SHRD"],
        cwd=folder,
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "140", "LINES": "40"},
    )
    os.close(child)
    screen = b""
    while True:
        try:
            data = os.read(parent, 65536)
        except OSError:  # the other side is gone
            break
        if not data:
            break
        screen += data
    assert process.wait(timeout=300) == 0
    for text in (b"SWR/s", b"PMEM  /MB:", b"VMKMEM/MB:", b"MEMCTL/MB:", b"SWCUR", b"3 of 3 guests"):
        assert text in screen
    assert b"MCTLTGT" not in screen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: no such file, and no bundled scenario"),
        (["s.toml", "--columns", "NAME,FOO"], "--columns: no column FOO; there are NAME,STATE"),
        (["s.toml", "--record", "no/r.parquet"], "no does not exist"),
        (["s.toml", "--events", "no/e.csv"], "no does not exist"),
        (["s.toml", "--record", "."], ".: is a directory; name a file"),
        (
            ["s.toml", "--record", "x", "--events", "x"],
            "x: both --record and --events; name a file for each",
        ),
        (["big.toml"], "VM a cannot be powered on: it needs"),
        (["taken.toml"], "another memvirt uses this state directory"),
    ],
)
def test_mistakes_are_one_line(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "big.toml").write_text(
        '[machine]\nmemory="16M"\n[[vm]]\nname="a"\nmemory="64M"\nreservation="32M"\n'
    )
    (folder / "taken.toml").write_text(
        SCENARIO.format(passes=1, ticks=2).replace('"state"', '"taken"')
    )
    (folder / "taken").mkdir()
    taken = os.open(folder / "taken", os.O_RDONLY)
    fcntl.flock(taken, fcntl.LOCK_EX)
    done = memvirt(folder, *arguments)
    os.close(taken)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_lists_and_schema(folder: Path) -> None:
    assert "default" in memvirt(folder, "--list").stdout
    schema = subprocess.run(
        [sys.executable, "-m", "memvirt", "schema"], capture_output=True, text=True, check=True
    )
    assert json.loads(schema.stdout)["properties"]["machine"]


def test_output_that_cannot_be_written_is_one_line(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "s.toml", "--batch"], cwd=folder, stdout=full, stderr=subprocess.PIPE,
            text=True, timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "memvirt: standard output: No space left on device\n"


def test_a_reader_that_leaves_ends_the_run(folder: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "long.toml", "--batch"], cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith('"(PDH-CSV 4.0)')
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=300) == 128 + signal.SIGPIPE
    assert errors == ""
    assert not (folder / "state").exists()
