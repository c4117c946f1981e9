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
from typing import BinaryIO


class Console:
    """Serial output to the terminal or a file; input from standard input, when there is any."""

    def __init__(self, target: str) -> None:
        self._stdio = target == "stdio"
        self._file: BinaryIO = sys.stdout.buffer if self._stdio else open(target, "wb")  # noqa: SIM115
        self._input_open = self._stdio
        self._at_line_start = True

    def write(self, data: bytes) -> None:
        self._file.write(data)
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

    def wait(self, seconds: float) -> None:
        """Wait until something is typed, but no longer than ``seconds``."""
        if self._input_open and seconds > 0:
            select.select([0], [], [], seconds)

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
        """Let keys through one by one, without echo; the terminal is restored afterwards."""
        if not self._stdio or not sys.stdin.isatty():
            yield
            return
        before = termios.tcgetattr(0)
        try:
            tty.setcbreak(0)
            yield
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)

    def close(self) -> None:
        if not self._stdio:
            self._file.close()
