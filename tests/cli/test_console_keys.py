# SPDX-License-Identifier: Apache-2.0
"""Ctrl-A at an interactive console, on a pseudo-terminal: help, the end, and other keys."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

_IDLE = "workload=idle percent=10 ticks=1000000000"


class Terminal:
    """A ``memvirt boot`` at the keyboard of a pseudo-terminal."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.text = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "memvirt", "boot", "bundled", "--append", _IDLE],
            stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
        )  # fmt: skip

    def read_until(self, wanted: bytes) -> None:
        """Take what is printed until ``wanted`` is."""
        while wanted not in self.text:
            assert self.process.poll() is None, self.text
            self._read(1.0)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], seconds)
        if ready:
            self.text += os.read(self.master, 4096)
        return bool(ready)

    def read_to_the_end(self) -> None:
        """Take all that is printed until the command has ended."""
        while self.process.poll() is None or self._read(0):
            self._read(0.1)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    try:
        yield made
    finally:
        made.close()


def test_ctrl_a_is_the_escape_and_ctrl_c_is_the_guests(terminal: Terminal) -> None:
    """As with ``qemu -nographic``; the keys before the end are the guest's, and do not end it."""
    terminal.read_until(b"workload idle")
    terminal.type(b"\x03\x01\x01\x01z")  # Ctrl-C, Ctrl-A for the guest, an unknown escape
    terminal.type(b"\x01h")
    terminal.read_until(b"Ctrl-A h  this help")
    assert terminal.process.poll() is None
    terminal.type(b"\x01")  # the two keys of the escape come apart
    terminal.type(b"x")
    terminal.read_to_the_end()
    assert terminal.process.returncode == 130, terminal.text
    assert b"stopped by the user" in terminal.text
    assert b"virtual time" in terminal.text  # with its report
    assert b"Traceback" not in terminal.text
    assert termios.tcgetattr(terminal.slave) == terminal.before
