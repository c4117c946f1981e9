# SPDX-License-Identifier: Apache-2.0
"""Where compiled kernels are kept between runs: one folder for each state of the sources.

Numba notices a change of the file a function is in, but not of the functions it calls, which are
compiled into it. So the cache is keyed by a digest of all sources that kernels are made from: the
packages of ``_COMPILED``, and no others, so that work on policies and tools costs no compilation.
Builds that check (``MEMVIRT_CHECKED``, ``NUMBA_BOUNDSCHECK``), which Numba does not tell from
ordinary ones in its cache, have folders of their own.
It lies in the user's cache folder (``XDG_CACHE_HOME``), unless ``NUMBA_CACHE_DIR`` says otherwise.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numba

# A checked build of the kernels verifies every raw memory access (mmu.checked).
CHECKED = os.environ.get("MEMVIRT_CHECKED", "") not in ("", "0")

# Where kernels, and the constants they are compiled with, may be defined (tests/test_compiled.py).
_COMPILED = ("address.py", "record.py", "machine", "mmu", "vmm", "platform", "cpu")
_KEPT = 12  # folders of other source states: another checkout may still use them


def _digest() -> str:
    build = f"{numba.__version__} checked={CHECKED} bounds={bool(numba.config.BOUNDSCHECK)}"
    state = hashlib.sha256(build.encode())
    root = Path(__file__).parent
    sources = (path for name in _COMPILED for path in (root / name, *(root / name).rglob("*.py")))
    for path in sorted(path for path in sources if path.is_file()):
        state.update(str(path.relative_to(root)).encode())
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


def use_compiled_cache() -> None:
    """Point Numba at the cache for these sources. Call before any kernel is defined."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memvirt"
    folder = base / _digest()
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            others = sorted(base.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in [path for path in others if path != folder][_KEPT:]:
                shutil.rmtree(old, ignore_errors=True)
    except OSError:
        return  # no place for a cache: Numba falls back on its own choice
    numba.config.CACHE_DIR = str(folder)
