# SPDX-License-Identifier: Apache-2.0
"""``memvirt manage`` on real QEMU processes: dry run, balloons, swap, and everything put back."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memvirt.cli.main import app
from memvirt.vmkernel.events import Mechanism
from tests.live.pager.qemu_guest import VerifyingVm, until

from .conftest import StartVm, actual

pytestmark = [pytest.mark.qemu, pytest.mark.host_wide]


def host_file(memory: str, vms: list[tuple[VerifyingVm, str]], live: str = "") -> str:
    """A HOST.toml: each VM with its keys."""
    text = f"""
[machine]
memory = "{memory}"
Mem.SamplePeriod = 4
Mem.BalancePeriod = 2
[live]
interval = 0.3
scan_percent = 50
working_set = "off"
{live}
"""
    for vm, keys in vms:
        text += f'[[vm]]\nname = "{vm.name}"\nmemory = "192M"\n{keys}\n'
    return text


def consumed(vm: VerifyingVm) -> int:
    """MiB of its process."""
    return int(Path(f"/proc/{vm.pid}/statm").read_text().split()[1]) >> 8


class Command:
    """``memvirt manage`` as a process of its own."""

    def __init__(self, file: Path, *words: str) -> None:
        self.log = file.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "memvirt", "manage", str(file), "--status", "1", *words],
                stdout=log,
                stderr=log,
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, pattern: str) -> None:
        def there() -> bool:
            assert self.process.poll() is None, self.text
            return bool(re.search(pattern, self.text, re.MULTILINE))

        until(there, f"{pattern} in {self.text}")

    def end(self, sent: signal.Signals) -> int:
        self.process.send_signal(sent)
        return self.process.wait(60)


@pytest.mark.usefixtures("host_state", "ledger_directory")
def test_balloons_follow_and_everything_is_put_back(
    start_vm: StartVm, tmp_path: Path, ledger_directory: Path
) -> None:
    """Dry run first: it changes nothing and foretells what is done; then a run, killed; then one
    that goes on and is ended by SIGTERM."""
    low, high = start_vm("low", used=48, churn=64), start_vm("high", used=48, churn=64)
    for vm in (low, high):
        vm.wait_until_ready()
        vm.wait_for_progress(("memory", "churn"))
    until(lambda: min(consumed(low), consumed(high)) > 130, "both have touched their memory")
    budget = consumed(low) + consumed(high) + 8
    file = tmp_path / "host.toml"
    keys = [(low, "shares = 500"), (high, 'shares = 4000\nreservation = "96M"')]
    file.write_text(host_file(f"{budget}M", keys, "pageout = false"))
    events = tmp_path / "dry.jsonl"
    dry = CliRunner().invoke(
        app, ["manage", str(file), "--dry-run", "--seconds", "1", "--events", str(events)]
    )
    assert dry.exit_code == 0, dry.output
    assert "dry run: nothing was changed" in dry.output
    assert (actual(low), actual(high)) == (192, 192)
    assert not (ledger_directory / "changes.json").exists()
    foretold = [json.loads(line) for line in events.read_text().splitlines()]
    first = next(event for event in foretold if event["mechanism"] == Mechanism.BALLOON)
    assert first["vm"] == low.name

    command = Command(file)
    try:
        command.wait_for(rf"{low.name} +balloon +\+")
        done = re.search(
            rf"^.*?{low.name} +balloon +\+(\S+) MiB  (.*)$", command.text, re.MULTILINE
        )
        assert done is not None
        assert float(done[1]) == pytest.approx(first["pages"] / 256, rel=0.35)
        assert re.sub(r"\d+", "N", done[2]) == re.sub(r"\d+", "N", first["reason"])
        until(lambda: (actual(low) or 192) < 185, "the guest gives memory up")
    finally:
        command.end(signal.SIGKILL)
    assert (ledger_directory / "changes.json").exists()
    assert (actual(low) or 192) < 185  # nobody was there to put it back

    again = Command(file)
    try:
        again.wait_for("taken over from a manager that ended without a word")
    finally:
        assert again.end(signal.SIGTERM) == 0, again.text
    assert f"{low.name}: has its 192.0 MiB again" in again.text
    assert (actual(low), actual(high)) == (192, 192)
    assert not (ledger_directory / "changes.json").exists()
    for vm in (low, high):
        vm.wait_for_progress(("memory",))
        vm.assert_nothing_wrong()
