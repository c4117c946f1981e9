# SPDX-License-Identifier: Apache-2.0
"""Run cases in a worker until there have been enough; count what came of them, keep what failed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .case import Verdict

KEEP = Path("build") / "fuzz"
_MOST_KEPT = 10  # of one kind and outcome
_CPU_SECONDS = 300.0  # of the host's processor for a case, its own processes included
_WALL_SECONDS = 1500.0  # a case that waits for what never comes
_POLL_SECONDS = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    """The process that runs cases; a new one after it has died."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.fuzz.worker"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                    start_new_session=True,
                )  # fmt: skip
        return self._process

    def _end(self) -> int:
        """End it and what it has started; its status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
        return process.returncode

    def kill(self) -> None:
        """Kill the process, and wait until it is dead: the next job finds it so."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def do(self, job: dict[str, Any]) -> Verdict:
        """The verdict on a job; a crash and a case without end have one too."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        used, begun = _cpu_seconds(process.pid), time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # dead already: it has no answer below
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        while not select.select([process.stdout], [], [], _POLL_SECONDS)[0]:
            spent = _cpu_seconds(process.pid) - used
            if spent < _CPU_SECONDS and time.monotonic() - begun < _WALL_SECONDS:
                continue
            process.send_signal(signal.SIGABRT)  # faulthandler then writes where it is
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            self._end()
            return Verdict(False, "never ends", self._last_words(), spent)
        line = process.stdout.readline()
        if line:
            return Verdict(**json.loads(line))
        status = process.wait()
        self._end()
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        return Verdict(False, f"the process dies: {name}", self._last_words())

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]


def _cpu_seconds(process: int) -> float:
    """Of a process and those of its children that have ended."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, words[11:15])) / _TICKS


@dataclass
class Campaign:
    """``kinds`` in turn, from ``seed`` on. ``cases``, if given, is how many; else ``seconds``."""

    kinds: tuple[str, ...]
    seed: int
    seconds: float | None = None
    cases: int | None = None
    keep: Path = KEEP
    counts: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)
    kept: list[Path] = field(default_factory=list)

    def _jobs(self) -> Iterator[tuple[str, str]]:
        end = None if self.seconds is None else time.monotonic() + self.seconds
        number = 0
        while self.cases is None or number < self.cases:
            for kind in self.kinds:
                if end is not None and time.monotonic() >= end:
                    return
                yield kind, f"{self.seed}-{number}"
            number += 1

    def run(self, *, progress: bool = False) -> bool:
        """True if every case came to what is promised."""
        with tempfile.TemporaryDirectory(prefix="memvirt-fuzz-") as name:
            folder = Path(name)
            # Commands are forked: from a process in which no library has started threads.
            with Worker(folder / "log") as others, Worker(folder / "commands.log") as commands:
                for done, (kind, seed) in enumerate(self._jobs()):
                    at = folder / "case"
                    worker = commands if kind == "command" else others
                    verdict = worker.do({"kind": kind, "seed": seed, "folder": str(at)})
                    self.note(kind, seed, verdict, at)
                    if at.exists():
                        shutil.rmtree(at)
                    if progress and done % 20 == 19:
                        print(f"\r{done + 1}, {self.failures} failed ", end="", file=sys.stderr)
        if progress:
            print(file=sys.stderr)
        return self.failures == 0

    @property
    def failures(self) -> int:
        return sum(count for (_, _, good), count in self.counts.items() if not good)

    def note(self, kind: str, seed: str, verdict: Verdict, folder: Path) -> None:
        """Count a verdict; keep the case, which is in ``folder``, if it failed."""
        key = (kind, verdict.outcome, verdict.good)
        self.counts[key] += 1
        self.slowest[kind] = max(self.slowest.get(kind, 0.0), verdict.slowest)
        if verdict.good or self.counts[key] > _MOST_KEPT:
            return
        kept = self.keep / f"{kind}-{seed}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            shutil.copytree(folder, kept)
        else:  # it died while the case was made
            kept.mkdir()
        again = f"python -m tests.fuzz --again {kept}"
        if not folder.exists():
            again = f"python -m tests.fuzz --kind {kind} --case {seed}"
        (kept / "verdict.txt").write_text(
            f"{verdict.outcome}\nrun it again: {again}\n\n{verdict.detail}\n",
            "utf-8", "backslashreplace",
        )  # fmt: skip
        self.kept.append(kept)

    def table(self) -> str:
        """Outcomes by kind, failures marked; the slowest quantum of guests."""
        lines = [f"{'kind':<11} {'cases':>7}  outcome"]
        for (kind, outcome, good), count in sorted(self.counts.items()):
            lines.append(f"{kind:<11} {count:>7}  {'' if good else 'FAILURE: '}{outcome}")
        lines.append(f"{'all':<11} {self.counts.total():>7}  {self.failures} failures")
        slow = {kind: seconds for kind, seconds in self.slowest.items() if seconds}
        for kind, seconds in sorted(slow.items()):
            lines.append(f"{kind:<11} slowest quantum: {seconds:.3f} CPU seconds")
        return "\n".join(lines)
