# SPDX-License-Identifier: Apache-2.0
"""Command lines, each in a process of its own, forked so that nothing is imported again."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from memvirt.cli.main import main

from .case import Case, Verdict
from .files import SMALL_SCENARIO, make_snapshot, strange_number

_CPU_SECONDS = 60
_USAGE = 2
_STATUSES = (0, 1, 2, 3, 124, 130)
_OPTIONS: dict[str, tuple[str, ...]] = {
    "boot": ("--memory", "--machine-memory", "--paging", "--append", "--initrd", "--protocol",
             "--serial", "--timeout", "--stats", "--snapshot", "--success-code", "--check"),
    "run": ("--record", "--events", "--interval", "--batch", "--columns", "--list"),
    "map": ("--physical", "--frame", "--cpu", "--cr", "--json", "--memory", "--run-for", "--boot"),
    "plan": ("--host", "--hosts", "--what-if", "--json", "--html", "--draws", "--seed", "--in-use",
             "--failover", "--fit", "--grow", "--interval", "--compressible", "--sharing"),
    "analyze": ("--json", "--html", "--pages", "--share"),
    "schema": ("--help",),
    "display": ("--help",),
    "watch": ("--interval", "--iterations", "--record", "--columns", "--working-set", "--period",
              "--scan-percent", "--json", "--batch", "--salt", "--rate"),
}  # fmt: skip
_FIRST: dict[str, tuple[str, ...]] = {
    "boot": ("bundled", "bundled", "noise", "pipe", "/dev/zero", ".", "none"),
    "run": ("s.toml", "s.toml", "noise", "pipe", "/dev/zero", ".", "none"),
    "map": ("snapshot", "snapshot", "noise", "pipe", "/dev/zero", "none"),
    "plan": ("plan.csv", "plan.csv", "noise", "pipe", "/dev/zero", ".", "none"),
    "analyze": ("noise", "pipe", "/dev/zero", ".", "none"),
    "schema": ("",),
    "display": ("snapshot", "snapshot", "noise", "pipe", "/dev/zero", "none"),
    "watch": ("", "", "none"),
}
_GOOD_VALUES = (
    "1",
    "0.05",
    "4M",
    "16M",
    "out",
    "full",
    "pipe",
    "none/out",
    "shadow",
    "nested",
    "flat",
    "linux",
    "0x10",
    "workload=selfmod",
    "352G",
    "memory=+64G",
    ".",
    "s.toml",
)
_PLAN = "vm,memory_mib,in_use_mib\na,4096,1000\nb,2048,500\n"


def make_command(draw: random.Random) -> Case:
    """A command, what it is about, and options that may fit."""
    command = draw.choice(list(_OPTIONS))
    words = [command]
    first = draw.choice(_FIRST[command]) if draw.random() < 0.9 else strange_number(draw)
    words += [first] if first else []
    if command == "map":
        words.append(draw.choice(("0x1000", "0", *[strange_number(draw)])))
    for _ in range(draw.choice((0, 1, 1, 2, 4))):
        option = draw.choice(_OPTIONS[draw.choice(list(_OPTIONS))] if draw.random() < 0.1
                             else _OPTIONS[command])  # fmt: skip
        value = draw.choice(_GOOD_VALUES) if draw.random() < 0.5 else strange_number(draw)
        words += [option, value]
    if command == "watch":
        words.append("--once")  # it changes nothing, whoever's VMs it sees
    if command == "boot" and "--timeout" not in words:
        words += ["--timeout", "0.2"]
    words = [word.encode("utf-8", "replace").decode() for word in words]
    files = {"snapshot": make_snapshot(draw).files["vm"], "noise": draw.randbytes(999)}
    return Case(
        "command",
        files,
        {"words": words},
    )


def _lay_out(folder: Path, case: Case) -> None:
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    (folder / "s.toml").write_text(SMALL_SCENARIO)
    (folder / "plan.csv").write_text(_PLAN)
    os.mkfifo(folder / "pipe")
    os.mknod(folder / "full", 0o600 | 0o020000, os.makedev(1, 7))


def _child(folder: Path, words: list[str]) -> None:
    """Become the command; its output goes to files beside ``folder``. Never returns."""
    status = 70
    try:
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder.parent / name, os.O_WRONLY | os.O_CREAT), descriptor)
        sys.stdin, sys.stdout, sys.stderr = (
            open(0, encoding="utf-8", closefd=False),  # noqa: SIM115
            open(1, "w", encoding="utf-8", closefd=False),  # noqa: SIM115
            open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False),  # noqa: SIM115
        )
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(_CPU_SECONDS * 5)  # one that waits, for a pipe, uses no processor
        sys.argv = ["memvirt", *words]
        main()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(status)


def run_command(case: Case) -> Verdict:
    """Run it in a folder with a scenario, a snapshot, measurements, noise, a pipe, a full disk."""
    # Not TemporaryDirectory: the child's own end would remove it.
    name = tempfile.mkdtemp()
    try:
        folder = Path(name) / "work"
        folder.mkdir()
        _lay_out(folder, case)
        before = set(os.listdir(folder))
        child = os.fork()
        if child == 0:
            _child(folder, case.options["words"])
        _, status = os.waitpid(child, 0)
        said = (Path(name) / "stderr").read_text(errors="replace")
        partial = [entry for entry in set(os.listdir(folder)) - before if entry.endswith(".part")]
    finally:
        shutil.rmtree(name)
    last = said.strip().splitlines()[-1] if said.strip() else ""
    if os.WIFSIGNALED(status):
        ended = signal.Signals(os.WTERMSIG(status)).name
        slow = ended in ("SIGXCPU", "SIGALRM", "SIGKILL")
        return Verdict(False, "never ends" if slow else f"killed by {ended}", said[-2000:])
    code = os.WEXITSTATUS(status)
    if "Traceback" in said or code not in _STATUSES:
        return Verdict(False, f"a traceback: {last.partition(':')[0]}", said[-4000:])
    if partial:
        return Verdict(False, "a partial file is left", str(partial))
    if code == _USAGE:
        if not said.strip():
            return Verdict(False, "refused without a word")
        clean = all(c.isprintable() or c in "\n\t" for c in said)
        return Verdict(clean, "refused in one line" if clean else "a terminal would obey it", last)
    return Verdict(True, f"status {code}", last)
