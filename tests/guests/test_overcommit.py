# SPDX-License-Identifier: Apache-2.0
"""Guests verify their memory on hosts that have half of it, or a quarter."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from memvirt.host.host import Host
from memvirt.host.state_directory import LIST, delete_dead_directories
from memvirt.vmkernel.events import Mechanism

from .scenarios import overcommitted


def explain(host: Host) -> str:
    lines = [f"{vm.name}: {vm.outcome} {bytes(vm.serial_log[-200:])!r}" for vm in host.vms]
    return "\n".join([*lines, *map(str, host.violations[:5]), *host.refusals])


@pytest.mark.parametrize("seed", range(20))
def test_all_guests_verify_their_memory(seed: int) -> None:
    scenario, ratio = overcommitted(seed)
    assert ratio > 1.2
    host = Host(scenario, check_every=1)
    directory = host.state_directory.path
    with host:
        assert host.run(), explain(host)
        assert all(vm.outcome is not None and vm.outcome.exit_value == 0x10 for vm in host.vms)
        assert len(host.vms) == len(scenario.vm)
        assert host.kernel.vms == []
    assert host.machine.free_frames == host.machine.frames
    assert not directory.exists()


def test_the_outcome_depends_on_the_scenario_alone() -> None:
    """Threads run in any order, and still every decision is the same, to the nanosecond."""

    def decisions() -> tuple[object, ...]:
        with Host(overcommitted(3)[0]) as host:
            samples: list[object] = []
            host.run(
                on_sample=lambda sample: samples.append((sample.host, len(sample.vms))),
                sample_interval=0.02,
            )
            outcomes = [vm.outcome.virtual_seconds for vm in host.vms if vm.outcome]
            return tuple(host.events), samples, outcomes

    first, second = decisions(), decisions()
    assert first == second
    assert any(event.mechanism == Mechanism.SWAP for event in first[0])  # type: ignore[attr-defined]


def test_a_state_directory_of_its_own_is_kept_clean(tmp_path: Path) -> None:
    scenario, _ = overcommitted(1)
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "memvirt-left-behind-7.vswp").write_bytes(b"from a run that was killed")
    (folder / "memvirt-mine.vswp").write_bytes(b"only has such a name")
    (folder / LIST).write_text('["memvirt-left-behind-7.vswp", "notes.txt", "../escape.vswp"]')
    (folder / "other.vswp").write_bytes(b"another program's")
    (folder / "notes.txt").write_text("mine")
    machine = scenario.machine.model_copy(update={"state_directory": str(folder)})
    with Host(scenario.model_copy(update={"machine": machine})) as host:
        files = sorted(path.name for path in folder.glob("memvirt-*.vswp"))
        files.remove("memvirt-mine.vswp")
        assert len(files) == len(host.vms)
        assert not any("left-behind" in name for name in files)
        assert all((folder / name).stat().st_mode & 0o077 == 0 for name in files)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["memvirt-mine.vswp", "notes.txt", "other.vswp"]


def test_directories_of_killed_runs_are_deleted(tmp_path: Path) -> None:
    dead, alive, not_ours = (tmp_path / f"memvirt-{name}" for name in ("dead", "alive", "mine"))
    for folder in (dead, alive, not_ours):
        folder.mkdir()
        (folder / "memvirt-vm-1.vswp").write_bytes(b"pages")
    for folder in (dead, alive):
        (folder / LIST).write_text('["memvirt-vm-1.vswp"]')
    lock = os.open(alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    delete_dead_directories(tmp_path)
    os.close(lock)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memvirt-alive", "memvirt-mine"]
    assert (alive / "memvirt-vm-1.vswp").exists()
    assert (not_ours / "memvirt-vm-1.vswp").exists()
