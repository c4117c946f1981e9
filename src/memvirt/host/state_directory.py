# SPDX-License-Identifier: Apache-2.0
"""Where a host keeps its swap files while it runs: a directory of its own, gone when it is done.

A run that is killed leaves its files behind; the next one deletes them. What is memvirt's own is
listed in the directory itself (``LIST``), and who runs holds a lock on it: a file that only has
such a name, or one of a run that lives, is never deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from pathlib import Path

from memvirt.errors import MemvirtError

# Other programs' swap files (ESXi's have the same suffix) are not ours to delete.
_PREFIX, _SUFFIX = "memvirt-", ".vswp"
LIST = ".memvirt-swap-files"


class StateDirectoryError(MemvirtError):
    """A state directory that cannot be used; the message names it and says why."""


def _delete_left(path: Path) -> None:
    """Delete the swap files that the list in ``path``, a directory whose lock we hold, names."""
    try:
        names = json.loads((path / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for name in names if isinstance(names, list) else ():
        named = isinstance(name, str) and Path(name).name == name
        if named and name.startswith(_PREFIX) and name.endswith(_SUFFIX):
            (path / name).unlink(missing_ok=True)
    (path / LIST).unlink(missing_ok=True)


def _lock(path: Path) -> int:
    """A descriptor that holds the directory's lock. Raises BlockingIOError if another has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def delete_dead_directories(folder: Path) -> None:
    """Delete the directories in ``folder`` that killed runs of this user have made there."""
    for path in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if (
                path.is_symlink()
                or not (path / LIST).is_file()
                or path.stat().st_uid != os.getuid()
            ):
                continue
            descriptor = _lock(path)
            try:
                _delete_left(path)
                path.rmdir()  # if nothing else is in it
            finally:
                os.close(descriptor)


class StateDirectory:
    """``path``, or without one a new temporary directory. Locked while it is in use.

    Swap files left by a run that was killed are deleted; other files are not touched.
    """

    def __init__(self, path: Path | None) -> None:
        self._made = path is None or not path.exists()
        self._lock = -1
        self._names: list[str] = []
        try:
            if path is None:
                delete_dead_directories(Path(tempfile.gettempdir()))
                self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            else:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.path = path.resolve()
            self._lock = _lock(self.path)
            _delete_left(self.path)
        except BlockingIOError as error:
            raise StateDirectoryError(
                f"{path}: another memvirt uses this state directory; name another one"
            ) from error
        except OSError as error:
            raise StateDirectoryError(
                f"{path}: cannot be the state directory: {error.strerror}"
            ) from error

    def swap_file(self, name: str, vm_id: int) -> Path:
        """Path of the swap file of a VM, whatever characters its name has. It is put on the list.

        Raises StateDirectoryError if the list cannot be written.
        """
        plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        file = f"{_PREFIX}{plain}-{vm_id}{_SUFFIX}"
        if not (self.path / file).exists():  # else making it will fail, and it is not ours
            self._names.append(file)
            try:
                (self.path / LIST).write_text(json.dumps(self._names), encoding="utf-8")
            except OSError as error:
                raise StateDirectoryError(f"{self.path / LIST}: {error.strerror}") from error
        return self.path / file

    def close(self) -> None:
        """Give the directory up; it is removed if it was made here and holds nothing else."""
        if self._lock < 0:
            return
        if self._names:
            (self.path / LIST).unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1
        if self._made:
            with contextlib.suppress(OSError):
                self.path.rmdir()
