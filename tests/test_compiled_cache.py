# SPDX-License-Identifier: Apache-2.0
"""Where no folder can be written, kernels are compiled in memory, and one line says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import memvirt.compiled_cache

# The module by itself: importing memvirt compiles everything, which takes most of a minute.
_PROGRAM = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("compiled_cache", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.use_compiled_cache()
sys.path.insert(0, sys.argv[2])
import kernels
assert kernels.twice(21) == 42
assert kernels.callback.ctypes(21) == 42
print("done")
"""
_KERNELS = """
from numba import cfunc, njit

@njit(nogil=True, cache=True)
def twice(x):
    return 2 * x

@cfunc("int64(int64)", cache=True)
def callback(x):
    return twice(x)
"""


def run(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (folder / "kernels.py").write_text(_KERNELS)
    clean = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    return subprocess.run(
        [sys.executable, "-B", "-c", _PROGRAM, memvirt.compiled_cache.__file__, folder],
        env=clean | environment, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "HOME"])
def test_no_folder_can_be_written(variable: str, tmp_path: Path) -> None:
    """A file stands where the folder should be: not even root can make one there."""
    (tmp_path / "file").touch()
    done = run(tmp_path, {variable: str(tmp_path / "file")})
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("memvirt: the cache of compiled code cannot be written")
    assert str(tmp_path / "file") in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "kernels.py"]


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "NUMBA_CACHE_DIR"])
def test_a_folder_that_can_be_written_is_used(variable: str, tmp_path: Path) -> None:
    done = run(tmp_path, {variable: str(tmp_path / "cache")})
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert list((tmp_path / "cache").rglob("*.nbi"))
    assert not (tmp_path / "__pycache__").exists()
