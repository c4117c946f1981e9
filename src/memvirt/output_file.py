# SPDX-License-Identifier: Apache-2.0
"""Files that memvirt writes for its user: complete or not at all, and never in place of a device.

A regular file is written under a name of its own beside its target and renamed when it is complete;
if anything goes wrong before that, it is removed and what the target held is untouched. A symbolic
link is followed: the file it names is replaced, not the link. What is not a regular file (a device,
a pipe, a socket's end under /dev/fd) has no content to preserve and must not be replaced: it is
opened and written in place.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from memvirt.errors import MemvirtError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_PUBLIC, _PRIVATE = 0o666, 0o600


class OutputFileError(MemvirtError):
    """A file that cannot be written; the message names it and says why."""


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputFileError(f"{path}: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _kind(path: Path) -> int | None:
    """File type bits of what ``path`` leads to; None if there is nothing."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        return None


def check_output(path: Path) -> None:
    """Raise OutputFileError now for a file that could not be written after hours of running."""
    with _errors_of(path):
        kind = _kind(path)
        if kind == stat.S_IFDIR:
            raise OutputFileError(f"{path}: is a directory; name a file")
        if kind not in (None, stat.S_IFREG):
            return
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir():
            raise OutputFileError(f"{path}: the directory {folder} does not exist")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputFileError(f"{path}: no file can be made in the directory {folder}")


class OutputFile(io.RawIOBase):
    """A file being written to ``path``: ``commit`` makes it appear, ``discard`` leaves no trace.

    As a context manager it is committed if the block ends well, else discarded. ``private`` files
    can be read by their owner only. Every failure is an OutputFileError. Sequential: there is a
    position (``tell``), but no way back.
    """

    def __init__(self, path: Path, *, private: bool = False) -> None:
        super().__init__()
        self.path = path
        self._partial: Path | None = None
        self._position = 0
        check_output(path)
        with _errors_of(path):
            if _kind(path) in (None, stat.S_IFREG):
                self._target = Path(os.path.realpath(path))
                number, name = tempfile.mkstemp(
                    prefix=f".{self._target.name[:100]}.", suffix=".part", dir=self._target.parent
                )
                self._partial = Path(name)
                if not private:
                    os.fchmod(number, self._wanted_mode())
            else:
                number = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            self._file = open(number, "wb")  # noqa: SIM115

    def _wanted_mode(self) -> int:
        """The mode of the file that is replaced, or that of a new one."""
        try:
            return stat.S_IMODE(self._target.stat().st_mode)
        except FileNotFoundError:
            return _PUBLIC & ~_umask()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of ``data``. Raises OutputFileError."""
        with _errors_of(self.path):
            count = self._file.write(data)
        self._position += count
        return count

    def flush(self) -> None:
        if not self.closed and not self._file.closed:
            with _errors_of(self.path):
                self._file.flush()

    def commit(self) -> None:
        """Complete the file and give it its name. Raises OutputFileError, with nothing left."""
        try:
            with _errors_of(self.path):
                self._file.close()
                if self._partial is not None:
                    self._partial.replace(self._target)
                    self._partial = None
        finally:
            self.discard()

    def discard(self) -> None:
        """Give up what was not committed. Calling again does nothing."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)
            self._partial = None
        if not self.closed:
            super().close()

    def close(self) -> None:
        """As ``discard``: a file that was not committed was not complete."""
        if hasattr(self, "_file"):
            self.discard()

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.commit()
        else:
            self.discard()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8. Raises OutputFileError."""
    with OutputFile(path) as file:
        file.write(text.encode())


def check_outputs(outputs: dict[str, Path | None], inputs: dict[str, Path | None]) -> None:
    """``check_output`` for several options by name, and no file written twice or over an input.

    Raises OutputFileError.
    """
    seen = {_identity(path): name for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        check_output(path)
        if _kind(path) not in (None, stat.S_IFREG):
            continue  # a device or a pipe may be named twice
        other = seen.setdefault(_identity(path), name)
        if other != name:
            raise OutputFileError(f"{path}: both {other} and {name}; name a file for each")


def _identity(path: Path) -> str:
    return os.path.realpath(path)
