# SPDX-License-Identifier: Apache-2.0
"""Standard output and error as a command needs them: full, closed, or with a reader that has left.

Whoever prints need not think of it. Standard output that cannot be written ends the command as any
output file does: with one line and status 2. A reader that has left (``| head -1``) ends it without
a word, with the status that a shell gives a program which SIGPIPE has ended. What cannot be written
to standard error is lost.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
from typing import TYPE_CHECKING

from memvirt.output_file import OutputFileError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

READER_LEFT = 128 + signal.SIGPIPE


class _Descriptor(io.RawIOBase):
    """Writes to an inherited descriptor; after an error, to nowhere."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._failed = False

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of ``data``; waits where the descriptor is set not to."""
        while not self._failed:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError as error:
                self._failed = True
                self._complain(error)
        return memoryview(data).nbytes

    def _complain(self, error: OSError) -> None:
        """Say what has failed, or nothing."""


class _Output(_Descriptor):
    def _complain(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise SystemExit(READER_LEFT)
        raise OutputFileError(f"standard output: {error.strerror}") from error


def _keep_open() -> None:
    """Give the three standard descriptors that are closed something, or a file would get one.

    What stands for a closed standard output cannot be written, and whoever tries is told.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)


def use_standard_streams() -> None:
    """Put such streams in the place of Python's own. Call once, before anything is printed."""
    _keep_open()
    for name, raw in (("stdout", _Output(1)), ("stderr", _Descriptor(2))):
        before = getattr(sys, name)
        if before is not None:
            with contextlib.suppress(OSError):
                before.flush()
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding="utf-8" if before is None else before.encoding,
            errors="backslashreplace",  # names of files may be no text
            line_buffering=name == "stderr" or raw.isatty(),
        )
        setattr(sys, name, stream)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
