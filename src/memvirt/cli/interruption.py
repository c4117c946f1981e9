# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM, acted upon where it is safe, and never lost.

An exception in the middle of anything would tear down memory that a processor is using, and one
that is raised inside a library's callback may be swallowed there. So a signal is only noted. Noting
is not enough for what waits: a signal that comes just before a blocking call is handled before it,
and the call then sleeps on. Python's signal handler in C writes to a descriptor at once
(``signal.set_wakeup_fd``): every wait also waits for that one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from types import TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupts_raise() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt: there is something to clean up.

    For work that cannot ask an ``Interruption``, and runs no kernels' callbacks.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Interruption:
    """While it is entered, SIGINT and SIGTERM set ``asked`` and end a ``wait``, nothing else.

    Outside the main thread, where Python cannot install handlers, nothing changes.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup_before = -1
        self._reader = self._writer = -1

    def __enter__(self) -> Interruption:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = {sent: signal.signal(sent, self._note) for sent in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sent, handler in self._before.items():
            signal.signal(sent, handler)
        self._before = {}
        if self._writer >= 0:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._reader)
            os.close(self._writer)
            self._reader = self._writer = -1

    def _note(self, *_: Any) -> None:
        self._asked = True

    @property
    def asked(self) -> bool:
        """Whether somebody wants the run to end."""
        return self._asked

    def wait(self, seconds: float, *descriptors: int) -> list[int]:
        """Wait until one of ``descriptors`` can be read, a signal comes, or time is over.

        Returns those that can be read. A signal that came before the call, unseen or not, ends it.
        """
        if self._asked:
            return []
        own = [self._reader] if self._reader >= 0 else []
        ready, _, _ = select.select([*descriptors, *own], [], [], max(seconds, 0))
        if self._reader in ready:
            # Other signals (a window that changes its size) write here too.
            with contextlib.suppress(BlockingIOError):
                os.read(self._reader, 4096)
        return [descriptor for descriptor in ready if descriptor in descriptors]

    def sleep(self, seconds: float) -> None:
        """Let time pass, all of it unless somebody wants the run to end."""
        end = time.monotonic() + seconds
        while not self._asked and (left := end - time.monotonic()) > 0:
            self.wait(left)
