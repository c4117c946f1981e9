# SPDX-License-Identifier: Apache-2.0
"""``--web`` as a user calls it: with other options, interrupted before, while and after it runs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from memvirt.observe.record import read_record

SCENARIO = """
[machine]
memory = "20M"
quantum_ms = 2
[[vm]]
name = "a"
memory = "12M"
append = "workload=fill passes={passes} varied=30"
[[vm]]
name = "b"
memory = "8M"
paging = "shadow"
append = "workload=idle percent=40 ticks=2"
"""
INTERRUPTED = 130


class Running:
    """A command, and the address it printed."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "memvirt", *arguments],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.url = ""
        while not self.url and (line := self.process.stderr.readline()):
            found = re.search(r"http://\S+", line)
            self.url = found.group(0) if found else ""
        assert self.url

    @property
    def token(self) -> str:
        return self.url.partition("token=")[2]

    def frames(self) -> Iterator[dict[str, Any]]:
        """Headers of what a page would get."""
        address = self.url.replace("http://", "ws://").replace("/?", "/live?")
        with connect(address, max_size=None) as page:
            assert "guest_classes" in json.loads(page.recv(timeout=300))
            while True:
                message = page.recv(timeout=300)
                assert isinstance(message, bytes)
                length = int.from_bytes(message[:4], "little")
                yield json.loads(message[4 : 4 + length])

    def command(self, name: str, **values: Any) -> None:
        request = urllib.request.Request(
            self.url.partition("?")[0] + f"api/{name}",
            json.dumps(values).encode(),
            {"Authorization": f"Bearer {self.token}"},
        )
        urllib.request.urlopen(request, timeout=300).close()

    def interrupt(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGINT)
        out, said = self.process.communicate(timeout=300)
        return self.process.returncode, out, said


@contextmanager
def running(*arguments: str, cwd: Path) -> Iterator[Running]:
    made = Running(*arguments, cwd=cwd)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


def _scenario(folder: Path, passes: int) -> None:
    (folder / "s.toml").write_text(SCENARIO.format(passes=passes))


def test_interrupted_before_a_page_and_while_it_runs(tmp_path: Path) -> None:
    """The host waits for a page; what was recorded until Ctrl-C is complete."""
    _scenario(tmp_path, 1_000_000)
    options = ("run", "s.toml", "--web", "--record", "r.parquet", "--events", "e.jsonl")
    with running(*options, cwd=tmp_path) as command:
        status, _, said = command.interrupt()
    assert status == INTERRUPTED
    assert "Traceback" not in said
    columns, _ = read_record(tmp_path / "r.parquet")
    assert set(columns["host_time_ns"].tolist()) == {0}  # nobody looked: nothing ran
    with running(*options, cwd=tmp_path) as command:
        for header in command.frames():
            if header["round"] >= 3:
                break
            command.command("control", command="speed", value=0)
        status, _, said = command.interrupt()
    assert status == INTERRUPTED
    assert "Traceback" not in said
    columns, _ = read_record(tmp_path / "r.parquet")
    assert columns["host_time_ns"].max() > 0
    events = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert {"power on"} <= {event["mechanism"] for event in events}


def test_a_run_to_its_end(tmp_path: Path) -> None:
    _scenario(tmp_path, 1)
    with running("run", "s.toml", "--web", "--columns", "swcur,cnsm", cwd=tmp_path) as command:
        command.command("control", command="speed", value=0)
        for header in command.frames():
            if header["done"]:
                break
        status, out, said = command.interrupt()
    assert status == 0, said
    assert "2 of 2 guests verified their memory" in out


def test_one_vm(tmp_path: Path) -> None:
    """``boot --web`` runs at full speed from the first page on; its outcome is the exit status."""
    arguments = ("boot", "bundled", "--memory", "8M", "--append", "workload=fill passes=1")
    with running(*arguments, "--paging", "shadow", "--web", cwd=tmp_path) as command:
        for header in command.frames():
            if header["done"]:
                break
        assert header["vms"][0]["paging"] == "shadow"
        status, _, said = command.interrupt()
    assert status == 0, said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["boot", "bundled", "--paging", "flat", "--web"], "shadow or nested, not flat"),
        (["boot", "bundled", "--snapshot", "x", "--web"], "--web excludes"),
        (["web", "nothing.parquet"], "nothing.parquet"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "memvirt", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
