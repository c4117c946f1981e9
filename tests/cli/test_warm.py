# SPDX-License-Identifier: Apache-2.0
"""``memvirt warm``: everything a VM needs is compiled ahead, once, and it can be interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "memvirt"]
# The engine is kept in that cache too: without it the package index's build is used, if it may be.
CACHES = ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "MEMVIRT_ENGINE")


def environment(cache: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in CACHES}
    return {**kept, "XDG_CACHE_HOME": str(cache)}


def processes_of(cache: Path) -> list[int]:
    """Processes whose environment names this cache."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(cache).encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_ctrl_c_ends_both_processes(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "warm"], env=environment(tmp_path), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "compiling for this machine" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 130
    assert rest == "memvirt: interrupted\n"
    assert processes_of(tmp_path) == []
    assert not list(tmp_path.rglob("warm-*"))


@pytest.mark.acceptance
def test_all_that_the_bundled_scenario_needs_is_compiled_ahead(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *words],
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=True,
        )

    assert re.match(r"compiled in \d+\.\d s, kept in ", run("warm").stdout)
    kernels = sorted(tmp_path.rglob("*.nbi"))
    assert len(kernels) > 200
    assert run("warm").stdout.startswith("nothing to compile")
    assert "compiling" not in run("run").stderr
    assert sorted(tmp_path.rglob("*.nbi")) == kernels
