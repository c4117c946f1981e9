# SPDX-License-Identifier: Apache-2.0
"""A real cluster of processes on loopback: equal results, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

from memvirt.plan.content.analysis import analyze
from memvirt.plan.executor import InProcess, OnDask, SchedulerError, executor
from memvirt.plan.generate import generate
from memvirt.plan.planner import answer
from memvirt.plan.question import Question
from tests.plan.test_content import dumps
from tests.waiting import until

pytestmark = [
    # Of a worker that is killed, and of processes that end while Python does.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

GIB = 1 << 18


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1",
        dashboard_address="127.0.0.1:0", memory_limit="2GB",
    ) as found:  # fmt: skip
        yield found


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with Client(cluster) as found:
        found.wait_for_workers(2, timeout=300)
        yield found


def quiet(done: int, total: int) -> None:
    pass


def test_a_plan_is_the_same_anywhere(client: Any) -> None:
    fleet = generate(30, days=1, interval=900)
    question = Question(host_memory=48 * GIB, hosts=4, draws=4, failover=1)
    here = answer(fleet, question, InProcess(), quiet)
    there = answer(fleet, question, OnDask(client), quiet)
    assert here.as_json() == there.as_json()
    assert here.fits == 0


class Slowly:
    """A task that takes a while, so that its worker can be killed in the middle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int) -> tuple[int, float]:
        (self.folder / f"{number}-{os.getpid()}").touch()
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            pass
        return number, float(np.random.default_rng(number).random())


def test_a_worker_that_is_killed_changes_nothing(client: Any, tmp_path: Path) -> None:
    tasks = list(range(60))
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        if done >= 10 and not killed:
            begun = {int(path.name.split("-")[1]) for path in tmp_path.iterdir()}
            killed.append(next(pid for pid in client.run(os.getpid).values() if pid in begun))
            os.kill(killed[0], signal.SIGKILL)

    results = OnDask(client).map(Slowly(tmp_path), tasks, kill_one)
    assert killed
    assert results == InProcess().map(Slowly(tmp_path), tasks, quiet)
    done_by_it = [path for path in tmp_path.iterdir() if path.name.endswith(f"-{killed[0]}")]
    assert done_by_it  # it had begun to work


def test_an_analysis_with_a_worker_killed_in_the_middle(client: Any, tmp_path: Path) -> None:
    paths = dumps(tmp_path, 5, [300, 200, 250, 100])
    here = analyze(paths, InProcess(), lambda what: quiet)
    killed: list[int] = []

    def report(what: str) -> Any:
        def progress(done: int, total: int) -> None:
            if what == "comparing" and not killed:
                killed.append(next(iter(client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)

        return progress

    there = analyze(paths, OnDask(client), report)
    assert killed
    assert there == here


def test_few_tasks_are_under_way_at_once(client: Any, tmp_path: Path) -> None:
    most = 0

    def watch(done: int, total: int) -> None:
        nonlocal most
        begun = len({path.name.split("-")[0] for path in tmp_path.iterdir()})
        most = max(most, begun - done)

    OnDask(client).map(Slowly(tmp_path), list(range(40)), watch)
    assert most <= 3 * 2 + 2


def test_by_address_and_by_number(cluster: Any) -> None:
    fleet = generate(6, days=1, interval=3600)
    question = Question(host_memory=16 * GIB, draws=3)
    here = answer(fleet, question, InProcess(), quiet)
    with executor(scheduler=cluster.scheduler_address) as where:
        assert where.workers == 2
        assert answer(fleet, question, where, quiet) == here
    with executor(workers=2, memory_per_worker="1GB") as where:
        assert answer(fleet, replace(question), where, quiet) == here


def test_a_scheduler_that_is_not_there() -> None:
    found = executor(scheduler="tcp://127.0.0.1:1")
    with pytest.raises(SchedulerError, match=r"--scheduler tcp://127\.0\.0\.1:1"), found:
        pass


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_nothing(tmp_path: Path, sent: signal.Signals, status: int) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.plan.endless", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: len(list(tmp_path.glob("worker-*"))) == 2 or run.poll() is not None,
              "two workers have begun")  # fmt: skip
        workers = [int(path.name.split("-")[1]) for path in tmp_path.glob("worker-*")]
        if sent is signal.SIGINT:
            os.killpg(run.pid, sent)  # as a terminal does
        else:
            run.send_signal(sent)
        said, _ = run.communicate(timeout=300)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == status, said
    assert "Traceback" not in said
    assert ("interrupted" in said) is (sent is signal.SIGINT)
    assert len(workers) == 2
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers),
          "workers are gone")  # fmt: skip
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
