# SPDX-License-Identifier: Apache-2.0
"""Linux as a user boots it: a shell on the terminal, Ctrl-C, a panic's report."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from .conftest import LinuxGuest

_LONG = 120  # seconds before a test gives up, not what anything should take


class Terminal:
    """memvirt on a pseudo-terminal of its own, in directory ``where``."""

    def __init__(self, guest: LinuxGuest, paging: str, append: str, where: Path) -> None:
        self._master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.text = ""
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "memvirt", "boot", guest.kernel, "--initrd", guest.initrd,
                "--memory", "256M", "--paging", paging, "--append", append,
            ],
            stdin=slave, stdout=slave, stderr=slave, cwd=where, start_new_session=True,
            env=os.environ | {"TMPDIR": str(where)},
        )  # fmt: skip

    def until(self, text: str) -> None:
        """Read until ``text`` appears in what has come since the last call."""
        give_up = time.monotonic() + _LONG
        while text not in self.text:
            assert time.monotonic() < give_up, self.text[-2000:]
            if select.select([self._master], [], [], 0.2)[0]:
                self.text += os.read(self._master, 4096).decode("utf-8", "replace")
            else:
                assert self.process.poll() is None, self.text[-2000:]
        self.text = self.text.split(text, 1)[1]

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def finish(self) -> tuple[int, str]:
        """Exit status, and the rest of the output; the terminal must be as it was."""
        give_up = time.monotonic() + _LONG
        while self.process.poll() is None or select.select([self._master], [], [], 0)[0]:
            assert time.monotonic() < give_up, self.text[-2000:]
            if select.select([self._master], [], [], 0.1)[0]:
                self.text += os.read(self._master, 4096).decode("utf-8", "replace")
        assert termios.tcgetattr(self._slave) == self.before
        return self.process.returncode, self.text

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)


@pytest.mark.parametrize("paging", ["shadow", "nested"])
def test_a_person_can_type_commands(linux_guest: LinuxGuest, paging: str, tmp_path: Path) -> None:
    terminal = Terminal(linux_guest, paging, "console=ttyS0 quiet", tmp_path)
    try:
        terminal.until("added to the kernel command line: panic=-1")
        terminal.until("guest# ")
        terminal.type("echo $((6 * 7))-answers\n")
        terminal.until("42-answers")
        terminal.type("grep MemTotal /proc/meminfo\n")
        terminal.until("kB")
        terminal.type("cat /proc/cmdline\n")
        terminal.until("panic=-1 console=ttyS0 quiet")
        terminal.type("for i in 1 2 3; do (echo fork$i | tr a-z A-Z); done\n")
        terminal.until("FORK3")
        terminal.type("poweroff\n")
        status, rest = terminal.finish()
    finally:
        terminal.close()
    assert status == 0, rest
    assert "the guest powered off" in rest
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["key", "signal"])
def test_ctrl_c_ends_the_vm(linux_guest: LinuxGuest, how: str, tmp_path: Path) -> None:
    """By the key in the shell, by SIGTERM while the guest computes: clean in both cases."""
    workload = "" if how == "key" else " workload=compute rounds=100000"
    terminal = Terminal(linux_guest, "nested", f"console=ttyS0 quiet{workload}", tmp_path)
    try:
        if how == "key":
            terminal.until("guest# ")
            # The pseudo-terminal is nobody's controlling terminal: send what the key would.
            os.kill(terminal.process.pid, signal.SIGINT)
        else:
            terminal.until("compute: begins")
            terminal.process.terminate()
        status, rest = terminal.finish()
    finally:
        terminal.close()
    assert status == 130, rest
    assert "stopped by the user" in rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_a_panic_is_reported(linux_guest: LinuxGuest, tmp_path: Path) -> None:
    """With the console in a file: the last lines come with the report, and the status is 1."""
    console = tmp_path / "console"
    done = subprocess.run(
        [
            sys.executable, "-m", "memvirt", "boot", linux_guest.kernel, "--initrd",
            linux_guest.initrd, "--memory", "256M", "--paging", "shadow", "--append",
            "console=ttyS0 workload=panic", "--serial", console, "--timeout", str(_LONG),
        ],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "the guest's kernel panicked (Attempted to kill init!" in done.stderr
    report = done.stderr.split("--- the console's last lines")[1]
    assert "Kernel panic - not syncing: Attempted to kill init!" in report
    assert "Kernel panic" in console.read_text()
