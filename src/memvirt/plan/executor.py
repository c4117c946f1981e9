# SPDX-License-Identifier: Apache-2.0
"""Where work is done: in this process, on processes of this machine, or on a Dask cluster.

A task is a function of its arguments alone, and results are put in the order of their tasks: so
they are equal to the last digit wherever they are computed. A worker that dies costs the time of
what it had; Dask does its tasks again elsewhere. Few tasks more than there are workers are under
way at once, so that memory does not grow with the work.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing.resource_tracker
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from memvirt.errors import MemvirtError

__all__ = ["Executor", "InProcess", "OnDask", "SchedulerError", "executor"]

Task = TypeVar("Task")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]  # tasks done, tasks in all

_AHEAD = 3  # tasks under way for each worker
_RETRIES = 8  # times a task may lose its worker
_SETTINGS = {
    "distributed.scheduler.allowed-failures": _RETRIES,
    "distributed.worker.profile.enabled": False,  # a look at every worker's stack each 10 ms
    # Arrays up to this size are kept by a worker for the next of their size; else each is mapped,
    # cleared and unmapped anew (4,400 page faults and a tenth of the time for a host and week).
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 16 << 20,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 16 << 20,
}


class SchedulerError(MemvirtError):
    """A Dask scheduler that cannot be used; the message says why."""


class Executor(Protocol):
    """Does tasks."""

    @property
    def workers(self) -> int:
        """How many tasks are done at once."""
        ...

    def map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], progress: Progress
    ) -> list[Result]:
        """Results in the order of the tasks. Raises what a task raises."""
        ...


@dataclass
class InProcess:
    """One task after another, here."""

    workers: int = 1

    def map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], progress: Progress
    ) -> list[Result]:
        """As ``Executor.map``."""
        results = []
        for task in tasks:
            results.append(function(task))
            progress(len(results), len(tasks))
        return results


@dataclass
class OnDask:
    """Tasks on the workers of a Dask client."""

    client: Any

    @property
    def workers(self) -> int:
        """Threads of all workers now, at least 1."""
        return max(sum(self.client.nthreads().values()), 1)

    def map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], progress: Progress
    ) -> list[Result]:
        """As ``Executor.map``; the tasks of a worker that dies are done by the others."""
        from distributed import as_completed  # noqa: PLC0415  costs a second, and few need it

        numbers = iter(range(len(tasks)))
        results: dict[int, Result] = {}

        def submit(number: int) -> Any:
            return self.client.submit(
                _numbered, function, number, tasks[number], pure=False, retries=_RETRIES
            )

        running = as_completed(
            [submit(number) for number in itertools.islice(numbers, self.workers * _AHEAD)]
        )
        for future in running:
            number, result = future.result()
            results[number] = result
            future.release()
            progress(len(results), len(tasks))
            for more in itertools.islice(numbers, 1):
                running.add(submit(more))
        return [results[number] for number in range(len(tasks))]


def _numbered(function: Callable[[Task], Result], number: int, task: Task) -> tuple[int, Result]:
    return number, function(task)


@contextlib.contextmanager
def executor(
    *, workers: int = 1, scheduler: str | None = None, memory_per_worker: str = "auto"
) -> Iterator[Executor]:
    """This process (one worker), so many processes here, or the cluster of a scheduler.

    ``memory_per_worker``: at 60 % of it a local worker writes what it keeps to disk, at 95 % it is
    started anew ("auto": its part of the machine). Raises SchedulerError.
    """
    if scheduler is None and workers <= 1:
        yield InProcess()
        return
    import dask  # noqa: PLC0415
    from distributed import Client, LocalCluster  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        try:
            if scheduler is not None:
                client = stack.enter_context(Client(scheduler, timeout="10s"))
                if not client.nthreads():
                    raise SchedulerError(f"--scheduler {scheduler}: has no workers")
            else:
                with _ctrl_c_kept():
                    cluster = stack.enter_context(
                        LocalCluster(
                            n_workers=workers, threads_per_worker=1, processes=True,
                            host="127.0.0.1", dashboard_address="127.0.0.1:0",
                            memory_limit=memory_per_worker,
                            # A heartbeat that is on its way when the cluster ends is an error to a
                            # worker, with a traceback; what goes wrong in a task comes back by
                            # itself.
                            silence_logs=logging.CRITICAL,
                        )
                    )  # fmt: skip
                client = stack.enter_context(Client(cluster))
        except (OSError, ValueError, RuntimeError, TimeoutError) as error:
            where = f"--scheduler {scheduler}" if scheduler else f"--workers {workers}"
            raise SchedulerError(f"{where}: cannot be reached ({error})") from error
        yield OnDask(client)


@contextlib.contextmanager
def _ctrl_c_kept() -> Iterator[None]:
    """Threads and processes started inside, and theirs, never see Ctrl-C: a terminal sends it to
    all processes, and each worker would print a traceback. This process gets it afterwards."""
    # Whoever starts the first process else unblocks the signal on the way.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def suitable_workers(work: float) -> int:
    """Processes that ``work`` seconds of one of them are worth: none for what ends soon."""
    return 1 if work < 10 else os.cpu_count() or 1
