# SPDX-License-Identifier: Apache-2.0
"""Running quanta of several VMs in parallel, until all processors stand still again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from memvirt.vm.outcome import Outcome
from memvirt.vm.virtual_machine import VirtualMachine

_LOOK_SECONDS = 0.2  # between two questions whether to hurry


class HostInterrupted(Exception):
    """Somebody asked for the run to end before its time."""


def _no_hurry() -> bool:
    return False


class QuantumRunner:
    """Threads for the VMs of a host, at most ``vms`` of them, made when they are first needed.

    An error in a quantum is told ``on_error`` when all have stopped; other VMs are not touched.
    """

    def __init__(self, vms: int, on_error: Callable[[VirtualMachine, Exception], object]) -> None:
        self._on_error = on_error
        self._hurry: Callable[[], bool] = _no_hurry
        self._workers = max(min(vms, os.cpu_count() or 1), 1)
        self._pool: ThreadPoolExecutor | None = None

    @contextlib.contextmanager
    def hurried(self, hurry: Callable[[], bool]) -> Iterator[None]:
        """In the block, ``hurry`` is asked while quanta run; once it says so, they are ended early.

        They are ``unfinished`` then.
        """
        self._hurry = hurry
        try:
            yield
        finally:
            self._hurry = _no_hurry

    def run(
        self,
        vms: Sequence[VirtualMachine],
        step: Callable[[VirtualMachine], Outcome | None],
    ) -> int:
        """Run VMs in parallel until all have stopped; returns how many there were."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="vm")
        running: list[Future[Outcome | None]] = [self._pool.submit(step, vm) for vm in vms]
        try:
            while wait(running, _LOOK_SECONDS).not_done:
                if self._hurry():
                    for vm, future in zip(vms, running, strict=True):
                        if not future.done():
                            vm.interrupt_quantum()
        except BaseException:
            # Nothing may be torn down while a processor runs.
            for vm in vms:
                if vm.outcome is None:
                    vm.request_stop()
            wait(running)
            raise
        for vm, future in zip(vms, running, strict=True):
            error = future.exception()
            if isinstance(error, Exception):
                self._on_error(vm, error)
            elif error is not None:
                raise error
        return len(running)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
