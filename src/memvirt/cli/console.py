# SPDX-License-Identifier: Apache-2.0
"""The serial console on the user's terminal."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from memvirt.output_file import OutputFileError, check_output

from .interruption import Interruption

STDIO = "stdio"


class Console:
    """Serial output to the terminal or a file; input from standard input, when there is any.

    A file is written as the guest prints, so that it can be followed; it is made, or emptied, at
    the first ``open``. What cannot be written is an OutputFileError.
    """

    def __init__(self, target: str) -> None:
        self._stdio = target == STDIO
        self._name = "standard output" if self._stdio else target
        self._file: BinaryIO | None = sys.stdout.buffer if self._stdio else None
        self._input_open = self._stdio
        self._at_line_start = True
        if not self._stdio:
            check_output(Path(target))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputFileError(f"{self._name}: {error.strerror or error}") from error

    def open(self) -> None:
        """Make the file, once it is certain that there will be a run."""
        if self._file is None:
            with self._errors():
                self._file = open(self._name, "wb", buffering=0)  # noqa: SIM115

    def write(self, data: bytes) -> None:
        self.open()
        assert self._file is not None
        with self._errors():
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            self._file.flush()
        self._at_line_start = data.endswith(b"\n")

    def finish_line(self) -> None:
        """End an unfinished line on the terminal, so that what follows starts on its own."""
        if self._stdio and not self._at_line_start:
            self.write(b"\n")

    @property
    def input_open(self) -> bool:
        """False once standard input has ended."""
        return self._input_open

    def wait(self, seconds: float, interruption: Interruption) -> None:
        """Wait until something is typed or the run is interrupted, at most ``seconds``."""
        if self._input_open and seconds > 0:
            interruption.wait(seconds, 0)

    def read(self) -> bytes:
        """What has been typed since the last call; never waits."""
        if not self._input_open:
            return b""
        try:
            ready, _, _ = select.select([0], [], [], 0)
            if not ready:
                return b""
            data = os.read(0, 64)
        except (OSError, ValueError):
            data = b""
        if not data:
            self._input_open = False
        return data.replace(b"\n", b"\r")

    @contextlib.contextmanager
    def keys_unbuffered(self) -> Iterator[None]:
        """Let all keys through one by one, without echo; the terminal is restored afterwards."""
        if not self._stdio or not sys.stdin.isatty():
            yield
            return
        before = termios.tcgetattr(0)
        try:
            tty.setcbreak(0)
            attributes = termios.tcgetattr(0)
            # Ctrl-C, Ctrl-Z, Ctrl-V, Ctrl-S and Ctrl-Q are keys like any other.
            attributes[0] &= ~termios.IXON
            attributes[3] &= ~(termios.ISIG | termios.IEXTEN)
            termios.tcsetattr(0, termios.TCSADRAIN, attributes)
            yield
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)

    def close(self) -> None:
        if not self._stdio and self._file is not None:
            self._file.close()
