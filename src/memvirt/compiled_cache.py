# SPDX-License-Identifier: Apache-2.0
"""Where compiled kernels are kept between runs: one folder for each state of the sources.

Numba notices a change of the file a function is in, but not of the functions it calls, which are
compiled into it. So the cache is keyed by a digest of all sources that kernels are made from: the
entries of ``_COMPILED``, and no others, so that work on policies and tools costs no compilation.
Builds that check (``MEMVIRT_CHECKED``, ``NUMBA_BOUNDSCHECK``), which Numba does not tell from
ordinary ones in its cache, have folders of their own.
It lies in the user's cache folder (``XDG_CACHE_HOME``), unless ``NUMBA_CACHE_DIR`` says otherwise.

Where that folder cannot be written (a hardened container), kernels are compiled in memory at every
start. Numba's own second choice, a folder beside the sources, is not taken: it is not keyed by what
a function calls.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.dispatcher import Dispatcher

# A checked build of the kernels verifies every raw memory access (mmu.checked).
CHECKED = os.environ.get("MEMVIRT_CHECKED", "") not in ("", "0")

# Where kernels, and the constants they are compiled with, may be defined (tests/test_compiled.py).
_COMPILED = (
    "address.py",
    "state_record.py",
    "compiled.py",
    "share_table.py",
    "machine",
    "mmu",
    "vmm",
    "platform",
    "cpu",
    "plan/dumps/lzo.py",
)
_KEPT = 12  # folders of other source states: another checkout may still use them


class KernelCache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of a function, for several processes that compile at the same time.

    Numba reads a function's index, chooses a file for the code, and writes both: two processes that
    do so at once can choose the same file for different code.
    """

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save compiled code while no other process of memvirt does."""
        folder = Path(self.cache_path)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            super().save_overload(sig, data)


@functools.cache
def source_digest() -> str:
    """Names the state of all that kernels are made from, and how they are compiled."""
    build = f"{numba.__version__} checked={CHECKED} bounds={bool(numba.config.BOUNDSCHECK)}"
    state = hashlib.sha256(build.encode())
    root = Path(__file__).parent
    sources = (path for name in _COMPILED for path in (root / name, *(root / name).rglob("*.py")))
    for path in sorted(path for path in sources if path.is_file()):
        state.update(str(path.relative_to(root)).encode())
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


def _make_writable(folder: Path) -> None:
    """Make ``folder``, if need be, and a file in it. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _forget_old(base: Path, folder: Path) -> None:
    """Remove all but the newest folders beside ``folder``. Another process may do the same."""
    with contextlib.suppress(OSError):
        others = sorted(base.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in [path for path in others if path != folder][_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)


def _compile_in_memory() -> None:
    """Make ``cache=True`` mean nothing: Numba refuses to define a function it cannot cache."""

    def enable_caching(self: object) -> None:
        pass

    for decorated in (Dispatcher, CFunc):
        setattr(decorated, "enable_caching", enable_caching)  # noqa: B010


def cache_folder() -> Path | None:
    """The folder of these sources' kernels; None where nothing is kept."""
    return Path(numba.config.CACHE_DIR) if numba.config.CACHE_DIR else None


def _warm_mark() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / f"warm-{source_digest()}"


def is_warm() -> bool:
    """True if nothing is left to compile for a VM, or nothing of it would be kept."""
    mark = _warm_mark()
    return mark is None or mark.exists()


def note_warm() -> None:
    """Remember that all that VMs need has been compiled."""
    if (mark := _warm_mark()) is not None:
        mark.touch()


def use_compiled_cache() -> None:
    """Point Numba at the cache for these sources. Call before any kernel is defined.

    If the cache cannot be written, one line on standard error says so, and nothing is cached.
    """
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    try:
        if chosen:
            folder = Path(chosen)
            _make_writable(folder)
            return
        try:
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError as error:  # a user without a home
            raise OSError(str(error)) from error
        folder = home / "memvirt" / source_digest()
        new = not folder.is_dir()
        _make_writable(folder)
        if new:
            _forget_old(folder.parent, folder)
        numba.config.CACHE_DIR = str(folder)
    except OSError as error:
        print(
            f"memvirt: the cache of compiled code cannot be written ({error.strerror or error}: "
            f"{error.filename or 'XDG_CACHE_HOME'}): everything is compiled anew, in memory",
            file=sys.stderr,
        )
        _compile_in_memory()
