# SPDX-License-Identifier: Apache-2.0
"""Host time is bounded too: a quantum that costs too much of it is interrupted, and goes on later.

Virtual time counts what a guest executes, not what executing it costs the host: code that changes
itself costs a thousand times as much as other code. Whoever waits for the end of a quantum (the
other VMs of a round, a timeout, Ctrl-C) would wait for the guest. So one thread looks at the
processor time that running quanta have used, and asks those beyond their share to stop. Processor
time, not the clock's: on a busy host a quantum takes long and costs little. Nor does compiling our
own kernels, in the first quantum of a new source state, count. A quantum of an ordinary guest costs
a tenth of its share at most, so what ordinary guests do is as reproducible as ever.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from memvirt.compiled import compile_seconds

SHARE_SECONDS = 1.0
SHARE_FACTOR = 50  # of the quantum's virtual time
_LOOK_SECONDS = 0.2


class Interruptible(Protocol):
    """What runs a quantum. The call comes from another thread, and may come again."""

    def interrupt_quantum(self) -> None: ...


@dataclass(slots=True)
class _Running:
    who: Interruptible
    clock: int
    until: float
    compiled: float  # seconds of compiling before it began

    def is_beyond(self) -> bool:
        """True if it has used its share. Not while something is compiled, maybe by itself."""
        compiled = compile_seconds()
        if compiled is None:
            return False
        return time.clock_gettime(self.clock) >= self.until + (compiled - self.compiled)


@dataclass(slots=True)
class HostCost:
    """What quanta have cost the host, in seconds."""

    processor_seconds: float = 0.0  # of those that are over, without compiling
    _wall: float = 0.0
    _began: float | None = None  # while one runs

    @property
    def wall_seconds(self) -> float:
        """By the clock; the quantum that runs now is in it."""
        return self._wall + (0.0 if self._began is None else time.perf_counter() - self._began)

    def begin(self) -> None:
        self._began = time.perf_counter()

    def end(self) -> None:
        self._wall, self._began = self.wall_seconds, None


def share_seconds(quantum_ns: int) -> float:
    """Processor time of the host that a quantum of ``quantum_ns`` may cost, in seconds."""
    return SHARE_SECONDS + SHARE_FACTOR * quantum_ns / 1e9


class HostTimeWatch:
    """The thread that looks, started with the first quantum, and the quanta it looks at."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: dict[int, _Running] = {}
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def quantum(self, who: Interruptible, share: float, cost: HostCost) -> Iterator[None]:
        """While the block runs in this thread, ``who`` is asked to stop once it has cost ``share``.

        Not after the block: when it is left, no call is under way. ``cost`` is added to then.
        Compiling does not count.
        """
        clock = time.pthread_getcpuclockid(threading.get_ident())
        began = time.clock_gettime(clock)
        entry = _Running(who, clock, began + share, compile_seconds() or 0.0)
        with self._changed:
            self._running[id(entry)] = entry
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="host time", daemon=True)
                self._thread.start()
            elif len(self._running) == 1:
                self._changed.notify()
        cost.begin()
        try:
            yield
        finally:
            with self._changed:
                del self._running[id(entry)]
            compiled = compile_seconds()
            if compiled is not None:  # while another thread compiles, nobody knows whose time it is
                spent = time.clock_gettime(clock) - began - (compiled - entry.compiled)
                cost.processor_seconds += max(spent, 0.0)
            cost.end()

    def _look(self) -> None:
        while True:
            with self._changed:
                if not self._running:
                    self._changed.wait()
                for entry in self._running.values():
                    if entry.is_beyond():
                        entry.who.interrupt_quantum()
            time.sleep(_LOOK_SECONDS)


WATCH = HostTimeWatch()


def _after_fork() -> None:
    """A child has no such thread, and runs none of the quanta."""
    WATCH.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork)
