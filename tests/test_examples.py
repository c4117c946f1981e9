# SPDX-License-Identifier: Apache-2.0
"""The examples run, as a reader would run them, and say what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
SAYS = {
    "step_by_step": (
        "settings  960 shares, reservation 0, limit 6144 pages: the second matters more",
        "first   paused: ",
        "resume    was paused",
    ),
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path) -> None:
    done = subprocess.run(
        [sys.executable, example], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for line in SAYS[example.stem]:
        assert line in done.stdout, done.stdout
