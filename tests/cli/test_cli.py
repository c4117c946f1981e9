# SPDX-License-Identifier: Apache-2.0
"""The command as a user runs it: exit statuses, errors of one line, maps and statistics."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memvirt.images import image_path


def memvirt(*words: str | Path, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memvirt", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.mark.parametrize("paging", ["shadow", "nested"])
@pytest.mark.parametrize(
    ("workload", "status"), [("selfmod", 0), ("panic", 1), ("triple", 3), ("spin", 124)]
)
def test_exit_status(paging: str, workload: str, status: int, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    append = f"workload={workload}"
    done = memvirt(
        "boot", "bundled", "--paging", paging, "--append", append, "--timeout",
        "400" if workload != "spin" else "2", "--check", "--stats", stats,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert "0 violations" in done.stderr
    figures = json.loads(stats.read_text())
    assert figures["exit_status"] == status
    assert figures["memory"]["walks"] > 0
    if workload == "triple":
        assert "--- walk of RIP" in done.stderr
        assert "rip" in done.stderr


def test_map_of_a_snapshot(tmp_path: Path) -> None:
    """Every step, down to the machine page, of the instruction where the guest died."""
    snapshot = tmp_path / "vm.snapshot"
    for paging in ("shadow", "nested"):
        done = memvirt(
            "boot", "bundled", "--paging", paging, "--append", "workload=triple", "--snapshot",
            snapshot,
        )  # fmt: skip
        assert done.returncode == 3
        found = re.search(r"rip +(0x[0-9a-f]+)", done.stderr)
        assert found is not None
        text = memvirt("map", snapshot, found[1])
        assert text.returncode == 0, text.stderr
        for word in ("PML4E", "PTE", "pmap", "machine", f"{paging} level 1"):
            assert word in text.stdout
        steps = json.loads(memvirt("map", snapshot, found[1], "--json").stdout)
        assert int(steps["gpa"], 16) & 0xFFF == int(found[1], 16) & 0xFFF
        assert len(steps["guest"]) == len(steps["second"]) == 4
        assert int(steps["machine_address"], 16) >> 12 == int(steps["mpn"], 16)
        leaf = int(steps["second"][-1]["value"], 16)
        assert leaf & 0xFFFFFFFFFF000 == int(steps["mpn"], 16) << 12


def _one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


def test_bad_images(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    _one_line(memvirt("boot", empty), "empty")
    whole = image_path("bundled").read_bytes()
    cut = tmp_path / "cut.elf"
    cut.write_bytes(whole[: len(whole) // 2])
    _one_line(memvirt("boot", cut), "cut.elf")
    _one_line(memvirt("boot", tmp_path / "none"), "none", "No such file")
    _one_line(memvirt("boot", "bundled", "--initrd", tmp_path / "no-initrd"), "no-initrd")


def test_bad_sizes() -> None:
    _one_line(memvirt("boot", "bundled", "--memory", "1000001"), "guest memory", "4 KiB")
    _one_line(memvirt("boot", "bundled", "--memory", "lots"), "lots", "64M")
    _one_line(memvirt("boot", "bundled", "--memory", "1M"), "memory")
    _one_line(memvirt("boot", "bundled", "--machine-memory", "128K"), "machine")


def test_bad_addresses(tmp_path: Path) -> None:
    _one_line(memvirt("map", "--boot", "bundled", "north"), "north")
    _one_line(memvirt("map", "--boot", "bundled", "0x8000000000000000"), "canonical")
    _one_line(memvirt("map", tmp_path / "nothing", "0"), "nothing")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[machine]\nmemory = "64M"\nmemroy = "1M"\n[[vm]]\nname = "a"\nmemory = "8M"\n',
         (":3:", "memroy", "scatter_seed")),
        ('[machine]\nmemory = "64M"\n[[vm]]\nname = "a"\nmemory = "8M"\npaging = "fast"\n',
         (":6:", "paging", "shadow")),
        ('[machine]\nmemory = "64M"\n[[vm]]\nname = "a"\n', (":3:", "memory", "missing")),
        ('[machine\n', ("line 1",)),
    ],
)  # fmt: skip
def test_bad_scenarios(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    scenario = tmp_path / "s.toml"
    scenario.write_text(text)
    _one_line(memvirt("run", scenario), "s.toml", *words)


def test_a_scenario_of_several_vms(tmp_path: Path) -> None:
    scenario = tmp_path / "s.toml"
    scenario.write_text(
        '[machine]\nmemory = "64M"\nscatter_seed = 3\n[remap]\nevery_ms = 5\nmove = 0.2\n'
        'unmap = 0.2\n[[vm]]\nname = "a"\ncount = 2\nmemory = "16M"\npaging = "shadow"\n'
        'append = "workload=fill"\n[[vm]]\nname = "b"\nmemory = "16M"\n'
        'append = "workload=identical"\n'
    )
    done = memvirt("run", scenario)
    assert done.returncode == 0, done.stdout
    assert "3 of 3 guests verified their memory; 0 broken invariants" in done.stdout
    scenario.write_text(scenario.read_text().replace("workload=identical", "workload=panic"))
    done = memvirt("run", scenario)
    assert done.returncode == 1
    assert "2 of 3 guests" in done.stdout


def test_success_code() -> None:
    words = ("boot", "bundled", "--append", "workload=selfmod", "--success-code")
    done = memvirt(*words, "0")
    assert done.returncode == 1, done.stderr
    assert "the guest reports failure (exit value 0x10)" in done.stderr
    for wrong in ("ten", "-1", "0x100000000"):
        done = memvirt(*words, wrong)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
