# SPDX-License-Identifier: Apache-2.0
"""A user's mistake is one clear line and exit status 2, never a traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

from memvirt.errors import MemvirtError
from memvirt.notebook import one_line

USAGE = 2
INTERRUPTED = 130
_MOST_CHARACTERS = 1000  # of a line


class UsageError(MemvirtError):
    """A command line that cannot be carried out; the message is one line."""


@contextlib.contextmanager
def web_tools() -> Iterator[None]:
    """Import what the web server needs in the block; say how to install it if it is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; the web page needs it: pip install 'memvirt[web]'"
        ) from error


@contextlib.contextmanager
def planning_tools() -> Iterator[None]:
    """Import what planning needs inside the block; say how to install it if it is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; planning needs it: pip install 'memvirt[plan]'"
        ) from error


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Report a user's mistake inside the block and exit with status 2; 130 after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print("memvirt: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except MemvirtError as error:
        _say(str(error))
        sys.exit(USAGE)
    except OSError as error:
        if error.filename is None:
            raise
        _say(f"{error.filename}: {error.strerror}")
        sys.exit(USAGE)


def _say(message: str) -> None:
    """Names of files and what stands in them may be anything: no terminal obeys what is printed."""
    shown = "\n".join(one_line(line, _MOST_CHARACTERS) for line in message.split("\n"))
    print(f"memvirt: {shown}", file=sys.stderr)


def end_interrupted() -> NoReturn:
    """Say that Ctrl-C has come and end at once: for a signal handler, which may have come while
    standard error was being printed on."""
    os.write(2, b"memvirt: interrupted\n")
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def sigterm_ends() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, temporary files and processes removed; the exit
    status is 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
