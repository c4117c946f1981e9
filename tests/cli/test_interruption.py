# SPDX-License-Identifier: Apache-2.0
"""A signal ends the wait it precedes."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest

from memvirt.cli.interruption import Interruption

_FOREVER = 300.0  # longer than the test's own timeout would let it wait


@pytest.fixture(autouse=True)
def _handlers_come_back() -> object:
    before = [signal.getsignal(sent) for sent in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(sent) for sent in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_wait_ends_it(sent: signal.Signals) -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), sent)
        assert interruption.wait(_FOREVER) == []
        assert interruption.asked


def test_a_signal_that_python_has_not_seen_yet_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The race itself: the handler in C has run, the one in Python has not, when select begins."""
    with Interruption() as interruption:
        os.write(interruption._writer, b"\2")  # all that the handler in C has done by then
        assert interruption.wait(_FOREVER) == []
        assert interruption.wait(0) == []  # and it is not seen twice


def test_a_signal_during_the_wait_ends_it() -> None:
    with Interruption() as interruption:
        main = threading.main_thread().ident
        assert main is not None
        later = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGTERM))
        later.start()
        while not interruption.asked:
            interruption.wait(_FOREVER)
        later.join()


def test_input_ends_the_wait() -> None:
    reader, writer = os.pipe()
    try:
        with Interruption() as interruption:
            os.write(writer, b"x")
            assert interruption.wait(_FOREVER, reader) == [reader]
            assert not interruption.asked
            os.read(reader, 1)
            begun = time.monotonic()
            assert interruption.wait(0.01, reader) == []
            assert time.monotonic() >= begun
    finally:
        os.close(reader)
        os.close(writer)


def test_outside_the_main_thread_nothing_is_installed() -> None:
    seen: list[bool] = []

    def run() -> None:
        with Interruption() as interruption:
            interruption.wait(0)
            seen.append(interruption.asked)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_vm_on_a_terminal_ends_at_once_and_leaves_it_as_it_was(
    sent: signal.Signals,
) -> None:
    """As a person at the keyboard sees it: the report, status 130, the terminal restored."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    command = [
        sys.executable, "-m", "memvirt", "boot", "bundled", "--append",
        "workload=idle percent=10 ticks=1000000000",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as process:
        text = b""
        try:
            while b"workload idle" not in text:
                text += os.read(master, 4096)
            process.send_signal(sent)
            while process.poll() is None or select.select([master], [], [], 0)[0]:
                if select.select([master], [], [], 0.1)[0]:
                    text += os.read(master, 4096)
        finally:
            process.kill()
        assert process.returncode == 130, text
        assert b"stopped by the user" in text
        assert b"Traceback" not in text
        assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_a_sleep_goes_on_after_a_signal_that_asks_for_nothing() -> None:
    """A window that changes its size ends a wait, but no sleep."""
    seen: list[int] = []
    before = signal.signal(signal.SIGWINCH, lambda number, _: seen.append(number))
    try:
        with Interruption() as interruption:
            main = threading.get_ident()
            later = threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGWINCH))
            later.start()
            began = time.monotonic()
            interruption.sleep(0.2)
            assert time.monotonic() - began >= 0.2
            later.join()
            assert seen == [signal.SIGWINCH]
            assert not interruption.asked
            signal.raise_signal(signal.SIGTERM)
            interruption.sleep(60)
    finally:
        signal.signal(signal.SIGWINCH, before)
