# SPDX-License-Identifier: Apache-2.0
"""``memvirt page`` as users type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memvirt.cli.main import app
from memvirt.live.pager.attachment import find_attachment
from memvirt.live.pager.page_states import PageTableFile, Word
from tests.waiting import until

from .qemu_guest import VerifyingVm

MEMVIRT = [sys.executable, "-m", "memvirt", "page"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--vm VM, or --listen"),
        (["--vm", "a", "--listen", "b"], "--vm VM, or --listen"),
        (["--detach"], "--vm VM, or --listen"),
        (["--vm", "a"], "say what may stay"),
        (["--vm", "a", "--target", "7"], "--target: 7"),
        (["--vm", "a", "--target", "1G", "--store-limit", "much"], '--store-limit: "much"'),
        (["--vm", "no-such-vm", "--target", "1G"], "no VM no-such-vm"),
        (["--vm", "no-such-vm", "--detach"], "no VM no-such-vm"),
        (["--vm", "1", "--status"], "1: is not paged"),
        (["--listen", "/proc/no/such", "--target", "1G"], "/proc/no/such: No such file"),
    ],
)
def test_a_mistake_is_one_line(runtime: Path, arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["page", *arguments])
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_status_without_any_paged_vm(runtime: Path) -> None:
    result = CliRunner().invoke(app, ["page", "--status"])
    assert (result.exit_code, result.stdout) == (0, "no VM is paged by memvirt on this host\n")


def _memvirt(*arguments: str) -> str:
    done = subprocess.run([*MEMVIRT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.acceptance  # real QEMU, real time: it needs a machine to itself
def test_a_vm_is_paged_shown_and_detached(
    start_vm: Callable[..., VerifyingVm], tmp_path: Path, runtime: Path
) -> None:
    vm = start_vm(disks=False)
    arguments = ["--vm", vm.name, "--target", "60M", "--store", str(tmp_path / "store")]
    pager = subprocess.Popen(
        [*MEMVIRT, *arguments, "--interval", "0.5"], stdout=subprocess.PIPE, text=True
    )
    with pager:
        until(lambda: find_attachment(vm.pid) is not None, "the VM is attached", 300)
        directory = find_attachment(vm.pid)
        assert directory is not None
        table = PageTableFile(directory / "pages")
        until(lambda: table.words[Word.EVICTED] > 2000, f"pages are evicted: {table.message}")
        (status,) = json.loads(_memvirt("--status", "--vm", str(vm.pid), "--json"))
        assert status["supervised"]
        assert status["running"]
        assert status["stored_pages"] > 0
        assert status["resident"] < status["memory"]
        assert _memvirt("--status").startswith(f"{vm.name}: ")
        again = subprocess.run([*MEMVIRT, *arguments], capture_output=True, text=True, check=False)
        assert again.returncode == 2
        assert f"is paged already, by process {pager.pid}" in again.stderr
        assert "detached, all of it is in memory" in _memvirt("--vm", vm.name, "--detach")
        assert pager.stdout is not None
        lines = pager.stdout.read()
    assert pager.returncode == 0
    assert "in memory; out" in lines
    assert "detaching (SIGTERM)" in lines
    vm.wait_for_progress(("memory", "churn"))
    vm.assert_nothing_wrong()
    assert not os.listdir(tmp_path / "store")
