# SPDX-License-Identifier: Apache-2.0
"""Standard output that is full, closed or left by its reader, for every command that prints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .small_scenario import SMALL_SCENARIO

_COMMAND = [sys.executable, "-m", "memvirt"]
_PLAN = "vm,memory_mib,in_use_mib\n" + "".join(f"vm{n},4096,1000\n" for n in range(40))
_PRINTING = (
    "--help",
    "--version",
    "boot --help",
    "schema",
    "schema --tables",
    "run --list",
    "plan plan.csv --host 512G",
    "analyze memory.raw",
    "watch --once --working-set off",
    "watch --once --json --working-set off",
    "page --status",
    "run s.toml",
    "boot bundled --memory 16M --append workload=selfmod",
    "boot bundled --memory 16M --append workload=selfmod --serial log --display text",
    "map 0x100000 --boot bundled --memory 16M --run-for 0.0001",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s.toml").write_text(SMALL_SCENARIO)
    (tmp_path / "plan.csv").write_text(_PLAN)
    (tmp_path / "memory.raw").write_bytes(bytes(1 << 20))
    return tmp_path


def _shell(folder: Path, words: str, redirection: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'"$0" -m memvirt {words} {redirection}', sys.executable], cwd=folder,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("words", _PRINTING)
def test_what_cannot_be_printed_ends_it_with_one_line(words: str, folder: Path) -> None:
    done = _shell(folder, words, ">/dev/full")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "memvirt: standard output: No space left on device"


@pytest.mark.parametrize("words", ["schema", "plan plan.csv --host 512G", "run s.toml --batch"])
def test_a_closed_output_is_told(words: str, folder: Path) -> None:
    done = _shell(folder, words, ">&-")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "memvirt: standard output: Bad file descriptor"


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&-", "<&- 2>&-"])
def test_what_cannot_be_said_is_lost(redirection: str, folder: Path) -> None:
    done = _shell(folder, "schema", redirection)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("{")


def test_no_file_gets_the_number_of_a_closed_stream(folder: Path) -> None:
    """The record must hold samples, not what is said on standard error."""
    done = _shell(folder, "run s.toml --events events", "<&- 2>&-")
    assert done.returncode == 0
    lines = (folder / "events").read_text().splitlines()
    assert lines
    assert all(line.startswith("{") for line in lines)


@pytest.fixture
def left_pipe() -> Iterator[int]:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize(
    "words", ["schema", "--help", "watch --once --working-set off", "plan plan.csv --host 512G"]
)
def test_a_reader_that_has_left_ends_it_without_a_word(
    words: str, folder: Path, left_pipe: int
) -> None:
    done = subprocess.run(
        [*_COMMAND, *words.split()], cwd=folder, stdin=subprocess.DEVNULL, stdout=left_pipe,
        stderr=subprocess.PIPE, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_names_that_a_terminal_would_obey_are_not_printed_as_they_are(folder: Path) -> None:
    """In messages, and where a name is no text at all."""
    for name in ("\x1b[2J", "\u202e", "\udcff"):
        done = subprocess.run(
            [*_COMMAND, "map", os.fsencode(f"{name}.snapshot"), "0x1000"], cwd=folder,
            capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr == "memvirt: ?" + done.stderr[10:]
        assert done.stderr.strip().isprintable()
