# SPDX-License-Identifier: Apache-2.0
"""Every output option, on files, devices, full disks and what cannot be written."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_output_file import device, names

from .small_scenario import SMALL_SCENARIO

_BOOT = ("boot", "bundled", "--memory", "16M", "--append", "workload=selfmod")


def memvirt(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memvirt", *words], cwd=folder, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


def _last_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("memvirt: ")
    for word in words:
        assert word in last


def test_devices_stay_devices(tmp_path: Path) -> None:
    null = device(tmp_path / "null", 3)
    done = memvirt(
        tmp_path, *_BOOT, "--stats", "null", "--snapshot", "null", "--serial", "null", "--check"
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "s.toml").write_text(SMALL_SCENARIO)
    done = memvirt(tmp_path, "run", "s.toml", "--record", "null", "--events", "null")
    assert done.returncode == 0, done.stderr
    assert stat.S_ISCHR(null.stat().st_mode)
    assert names(tmp_path) == ["null", "s.toml"]


def test_a_snapshot_is_for_its_owner_only(tmp_path: Path) -> None:
    done = memvirt(tmp_path, *_BOOT, "--stats", "stats", "--snapshot", "vm", "--serial", "log")
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((tmp_path / "vm").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "stats").stat().st_mode) & 0o044
    assert b"verdict: success" in (tmp_path / "log").read_bytes()
    assert names(tmp_path) == ["log", "stats", "vm"]


@pytest.mark.parametrize("option", ["--stats", "--snapshot", "--serial"])
def test_a_full_disk_under_boot(option: str, tmp_path: Path) -> None:
    device(tmp_path / "full", 7)
    _last_line(memvirt(tmp_path, *_BOOT, option, "full"), "full", "No space left on device")
    assert names(tmp_path) == ["full"]


@pytest.mark.parametrize("option", ["--record", "--events"])
def test_a_full_disk_under_run(option: str, tmp_path: Path) -> None:
    device(tmp_path / "full", 7)
    (tmp_path / "s.toml").write_text(SMALL_SCENARIO)
    _last_line(memvirt(tmp_path, "run", "s.toml", option, "full"), "full", "No space left")
    assert names(tmp_path) == ["full", "s.toml"]


def test_what_cannot_be_written_is_said_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SMALL_SCENARIO)
    for words in (
        (*_BOOT, "--stats", "none/stats"),
        (*_BOOT, "--snapshot", "."),
        (*_BOOT, "--serial", "none/log"),
        (*_BOOT, "--stats", "x", "--serial", "./x"),
        ("run", "s.toml", "--record", "none/r"),
        ("run", "s.toml", "--events", "s.toml"),
    ):
        done = memvirt(tmp_path, *words)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        _last_line(done, words[-1].removeprefix("./"))
        assert done.stdout == ""
    assert names(tmp_path) == ["s.toml"]
    assert (tmp_path / "s.toml").read_text() == SMALL_SCENARIO


def test_a_vm_that_cannot_start_leaves_no_console_file(tmp_path: Path) -> None:
    _last_line(memvirt(tmp_path, "boot", "none.img", "--serial", "log"), "none.img")
    assert names(tmp_path) == []
