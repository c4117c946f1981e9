# SPDX-License-Identifier: Apache-2.0
"""Working sets under KVM: which way sees what a guest touches without QEMU, and which is blind.

The guest is the tiny one of the pager's tests. Where this machine has no way that sees it, the test
of that is skipped with the reasons that ``choose_watcher`` gives.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memvirt.address import HostVirtualAddress
from memvirt.live.process import Process
from memvirt.live.ram import Backing, RamBlock, RamLayout
from memvirt.live.vm import open_kernel_pages
from memvirt.live.working_set import (
    SampledVm,
    WorkingSetWay,
    choose_watcher,
    referenced_pages,
    sample_references,
    uses_kvm,
    watch_pages,
)

from .pager.kvm_guest import FIRST_DATA_PAGE

PAGES = 512


class KvmProcess:
    """The process; ``sampled`` is what sampling needs of it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", str(Path(__file__).with_name("kvm_process.py")), str(PAGES)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        said = self.line()
        if said.startswith("no guest: "):
            self.process.communicate()
            pytest.skip(f"KVM: {said}")
        start = HostVirtualAddress(int(said))
        block = RamBlock(
            "ram", start, PAGES << 12, 0, Backing.ANONYMOUS, False, True, "00:00", 0, 0, ""
        )
        self.handle = Process(self.process.pid)
        vm: Any = SimpleNamespace(name="kvm", layout=RamLayout((block,), ()), process=self.handle)
        self.sampled = SampledVm(vm)

    def line(self) -> str:
        assert self.process.stdout is not None
        text = self.process.stdout.readline().strip()
        assert text, "the process with the guest has ended"
        return text

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.sampled.close()
        self.handle.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def guest() -> Iterator[KvmProcess]:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"/dev/kvm: {error.strerror}")
    guest = KvmProcess()
    try:
        yield guest
    finally:
        guest.end()


def test_clear_refs_does_not_see_a_guest_under_kvm_and_is_not_used_there(guest: KvmProcess) -> None:
    guest.tell("run")  # its tables are filled: from now on it touches pages without an exit
    assert guest.line() == "ran"
    guest.handle.write("clear_refs", b"1")
    guest.tell("run")
    assert guest.line() == "ran"
    assert referenced_pages(guest.sampled) < (PAGES - FIRST_DATA_PAGE) / 2
    assert uses_kvm(guest.handle)
    (result,) = sample_references([guest.sampled], 0, lambda seconds: None)
    assert result.fraction is None  # unknown, not idle
    assert "blind to what a guest under KVM touches" in result.error


@pytest.mark.acceptance
@pytest.mark.host_wide
def test_frames_are_seen_under_kvm(host_state: None, guest: KvmProcess) -> None:
    """While it runs, all data pages are touched; while it waits, none."""
    kernel, problem = open_kernel_pages()
    if kernel is None:
        pytest.skip(problem)
    watcher, _, problem = choose_watcher(WorkingSetWay.AUTO)
    if watcher is None:
        pytest.skip(problem)
    pages = np.arange(FIRST_DATA_PAGE, PAGES)
    try:
        with kernel:
            guest.tell("spin")
            (busy,) = watch_pages(watcher, [(guest.sampled, pages)], 2.0, kernel)
            guest.tell("run")
            assert [guest.line(), guest.line()] == ["spun", "ran"]
            (idle,) = watch_pages(watcher, [(guest.sampled, pages)], 2.0, kernel)
    finally:
        watcher.close()
    for seen in (busy, idle):
        assert seen.error == ""
        assert np.count_nonzero(seen.known) > 0.9 * pages.size
    assert np.count_nonzero(busy.touched) > 0.95 * np.count_nonzero(busy.known)
    assert np.count_nonzero(idle.touched) < 0.05 * pages.size
