# SPDX-License-Identifier: Apache-2.0
"""Where a host keeps its swap files while it runs: a directory of its own, gone when it is done."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

from memvirt.errors import MemvirtError

# Other programs' swap files (ESXi's have the same suffix) are not ours to delete.
_PREFIX, _SUFFIX = "memvirt-", ".vswp"


class StateDirectoryError(MemvirtError):
    """A state directory that cannot be used; the message names it and says why."""


class StateDirectory:
    """``path``, or without one a new temporary directory. Locked while it is in use.

    Swap files left by a run that was killed are deleted; other files are not touched.
    """

    def __init__(self, path: Path | None) -> None:
        self._made = path is None or not path.exists()
        self._lock = -1
        try:
            if path is None:
                self.path = Path(tempfile.mkdtemp(prefix="memvirt-"))
            else:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.path = path
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in self.path.glob(f"{_PREFIX}*{_SUFFIX}"):
                left.unlink()
        except BlockingIOError as error:
            os.close(self._lock)
            raise StateDirectoryError(
                f"{path}: another memvirt uses this state directory; name another one"
            ) from error
        except OSError as error:
            raise StateDirectoryError(
                f"{path}: cannot be the state directory: {error.strerror}"
            ) from error

    def swap_file(self, name: str, vm_id: int) -> Path:
        """Path of the swap file of a VM, whatever characters its name has."""
        plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        return self.path / f"{_PREFIX}{plain}-{vm_id}{_SUFFIX}"

    def close(self) -> None:
        """Give the directory up; it is removed if it was made here and holds nothing else."""
        if self._lock < 0:
            return
        os.close(self._lock)
        self._lock = -1
        if self._made:
            with contextlib.suppress(OSError):
                self.path.rmdir()
