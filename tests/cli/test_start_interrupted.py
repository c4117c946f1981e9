# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at any moment of a command's start: one line, status 130, nothing left behind.

The moments are imports, not times: the process sends itself the signal when it comes to one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .small_scenario import SMALL_SCENARIO

_PROGRAM = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == moment:
            os.kill(os.getpid(), signal.SIGINT)
        return None

moment = sys.argv.pop()
from memvirt.cli.entry import main
sys.meta_path.insert(0, Sender())
main()
"""
_IGNORING = "\n".join(line for line in _PROGRAM.splitlines() if "default_int_handler" not in line)
# What each command imports before it begins, in this order.
_COMMANDS = {
    "run s.toml --events events --record record": (
        "memvirt.scenario.scenario", "pydantic", "numpy", "numba", "memvirt.cli.run",
        "memvirt.vmm.monitor", "pyarrow", "memvirt.cli.live",
    ),
    "boot bundled --memory 8M --stats stats --snapshot vm": (
        "memvirt.cli.boot", "numba", "llvmlite.binding", "memvirt.cpu.unicorn.processor",
        "memvirt.cli.gdb",
    ),
    "run s.toml --web": ("memvirt.host.host",),
    "boot bundled --memory 8M --web": ("memvirt.host.host",),
    "plan plan.csv --host 8G --json answer": (
        "memvirt.cli.plan", "polars", "memvirt.plan.planner",
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s.toml").write_text(SMALL_SCENARIO)
    (tmp_path / "plan.csv").write_text("vm,memory_mib,in_use_mib\na,4096,1000\n")
    (tmp_path / "temporary").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "moment"), [(words, moment) for words in _COMMANDS for moment in _COMMANDS[words]]
)
def test_ctrl_c_while_things_are_imported(words: str, moment: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *words.split(), moment], cwd=folder,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500, check=False,
        env={**os.environ, "TMPDIR": str(folder / "temporary")},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, "")
    *before_that, last = done.stderr.splitlines()
    assert last == "memvirt: interrupted"
    assert [line for line in before_that if not line.startswith("memvirt: compiling")] == []
    assert sorted(folder.rglob("*")) == before


def test_a_background_job_does_not_hear_it(folder: Path) -> None:
    """The shell starts it with SIGINT ignored: that stays so."""
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$1" -c "$0" schema importlib.resources', _IGNORING,
         sys.executable],
        cwd=folder, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith("{")
