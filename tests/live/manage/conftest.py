# SPDX-License-Identifier: Apache-2.0
"""VMs to manage: verifying guests with a balloon, and swap in zram that is gone afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from bench import zram

from memvirt.live.discovery import find_vm
from memvirt.live.errors import CommandError
from memvirt.live.kernel_pages import PAGEMAP_FRAME
from memvirt.live.vm import LiveVm
from tests.live.conftest import host_state
from tests.live.pager.conftest import verifying_guest
from tests.live.pager.qemu_guest import VerifyingVm
from tests.waiting import until

__all__ = ["host_state", "verifying_guest"]

StartVm = Callable[..., VerifyingVm]


@pytest.fixture
def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("managing live VMs needs root")


@pytest.fixture
def ledger_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of the test's own for the record of changes."""
    monkeypatch.setenv("MEMVIRT_MANAGE_DIR", str(tmp_path / "ledger"))
    return tmp_path / "ledger"


@pytest.fixture
def start_vm(
    tmp_path: Path, verifying_guest: tuple[Path, Path], needs_root: None
) -> Iterator[StartVm]:
    """Starts verifying guests with anonymous memory of ``memory`` MiB."""
    started: list[VerifyingVm] = []

    def start(
        name: str, memory: int = 192, used: int = 64, churn: int = 32, more: str = "",
        group: Path | None = None,
    ) -> VerifyingVm:  # fmt: skip
        directory = tmp_path / name
        directory.mkdir()
        vm = VerifyingVm(
            directory, *verifying_guest, memory=f"{memory}M",
            command_line=f"memory={used} churn={churn} {more}", backend="share=off",
            disks=False, kind="ram", balloon="deflate-on-oom=on", group=group,
        )  # fmt: skip
        started.append(vm)
        return vm

    try:
        yield start
    finally:
        for vm in started:
            vm.kill()


def actual(vm: VerifyingVm) -> int | None:
    """MiB the guest has, by QEMU's word; None without a balloon."""
    with vm.monitor() as monitor:
        try:
            return int(monitor.execute("query-balloon")["actual"]) >> 20
        except CommandError:
            return None


@pytest.fixture
def zram_swap(host_state: None, needs_root: None) -> Iterator[int]:
    """Swap of 512 MiB in a zram device of the test's own; yields its pages."""
    with contextlib.ExitStack() as stack:
        try:
            pages = stack.enter_context(zram.zram_swap("512M"))
        except zram.NoZram as problem:
            pytest.skip(str(problem))
        yield pages


def ops(vm: VerifyingVm) -> int:
    """Operations of all workers of the guest so far."""
    text = vm.serial.read_text("latin1")
    return sum(int(count) for count in re.findall(r"ops (\d+)", text))


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
        return self.process.wait(300)


def consumed(vm: VerifyingVm) -> int:
    """MiB of its process."""
    return int(Path(f"/proc/{vm.pid}/statm").read_text().split()[1]) >> 8


class Watcher:
    """Knows of one VM that its processors are stopped: nothing of it is touched. DAMON, which
    tests/live/test_working_set.py proves, is not to be had on every machine of these tests."""

    def __init__(self, stopped: VerifyingVm) -> None:
        with LiveVm(find_vm(str(stopped.pid))) as vm:
            entries = vm.pagemap.of_ram(vm.layout)
        self.untouched = {int(entry & PAGEMAP_FRAME) for entry in entries}

    def touched(self, mpns: Sequence[int], seconds: float) -> dict[int, bool]:
        return {mpn: mpn not in self.untouched for mpn in mpns}

    def cpu_seconds(self) -> float:
        return 0.0

    def interrupt(self) -> None: ...

    def close(self) -> None: ...
