# SPDX-License-Identifier: Apache-2.0
"""Where the ``memvirt`` command begins: before anything is imported, Ctrl-C is made to end it.

Python's own handler raises KeyboardInterrupt, which in the middle of an import or of Numba's
callbacks is a traceback, or is lost. Until a command has something to clean up, it ends at once.
"""

from __future__ import annotations

import signal
import sys

from .errors import end_interrupted


def _end_at_once(*_: object) -> None:
    end_interrupted()


def _is_worker() -> bool:
    """Whether this is a process that multiprocessing has started, which imports the script too."""
    started = sys.modules.get("multiprocessing.process")
    return started is not None and started.parent_process() is not None


# A background job ignores SIGINT.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler and not _is_worker():
    signal.signal(signal.SIGINT, _end_at_once)

from .main import main as main  # noqa: E402, PLC0414 - it takes a while
