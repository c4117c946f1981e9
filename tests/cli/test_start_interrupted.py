# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at any moment of a command's start: one line, status 130, nothing left behind.

The moments are counted, not timed: the process sends itself the signal at its n-th import.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import os, signal, sys

class Counter:
    count = 0

    def find_spec(self, name, path=None, target=None):
        self.count += 1
        if self.count == moment:
            os.kill(os.getpid(), signal.SIGINT)
        return None

moment = int(sys.argv.pop())
counter = Counter()
from memvirt.cli.entry import main
sys.meta_path.insert(0, counter)
if moment == 0:
    import atexit
    atexit.register(lambda: print(f"imports: {counter.count}", file=sys.stderr))
main()
"""
_SCENARIO = """[machine]
memory = "32M"
[[vm]]
name = "a"
memory = "8M"
append = "workload=selfmod"
"""
_COMMANDS = {
    "run": "run s.toml --events events --record record",
    "boot": "boot bundled --memory 8M --append workload=selfmod --stats stats --snapshot vm",
    "plan": "plan plan.csv --host 8G --json answer",
}
_PARTS = (0.0, 0.05, 0.4, 0.8, 1.0)  # of all imports


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s.toml").write_text(_SCENARIO)
    (tmp_path / "plan.csv").write_text("vm,memory_mib,in_use_mib\na,4096,1000\n")
    (tmp_path / "temporary").mkdir()
    return tmp_path


def _run(folder: Path, words: str, moment: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM, *words.split(), str(moment)], cwd=folder,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500, check=False,
        env={**os.environ, "TMPDIR": str(folder / "temporary")},
    )  # fmt: skip


@pytest.mark.parametrize("command", _COMMANDS)
def test_ctrl_c_while_things_are_imported(command: str, folder: Path) -> None:
    words = _COMMANDS[command]
    straight = _run(folder, words, 0)
    assert straight.returncode == 0, straight.stderr
    found = re.search(r"imports: (\d+)", straight.stderr)
    assert found is not None
    imports = int(found[1])
    assert imports > 100
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for part in _PARTS:
        moment = max(int(part * imports), 1)
        done = _run(folder, words, moment)
        assert done.returncode == 130, (moment, imports, done.stderr)
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1] == "memvirt: interrupted"
        after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert after == before
        assert list((folder / "temporary").iterdir()) == []


def test_a_background_job_does_not_hear_it(folder: Path) -> None:
    """The shell starts it with SIGINT ignored: that stays so."""
    done = subprocess.run(
        ["sh", "-c", f"trap '' INT; exec {sys.executable} -c \"$0\" schema 20", _PROGRAM],
        cwd=folder, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith("{")
