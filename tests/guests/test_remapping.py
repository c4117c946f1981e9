# SPDX-License-Identifier: Apache-2.0
"""Guests verify their memory while the host moves, unmaps and shares it under them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from memvirt import EndReason, Machine, PagingMode, VirtualMachine
from memvirt.host.remap import Remapper
from memvirt.images import image_path
from memvirt.scenario.keys import RemapOptions
from memvirt.vmm.check import check_machine

MODES = [PagingMode.SHADOW, PagingMode.NESTED]


@pytest.mark.parametrize("paging", MODES)
@pytest.mark.parametrize(
    ("workload", "every_ms", "seed"),
    [
        ("fill", 1, 0),
        ("identical", 1, 1),
        ("churn", 1, 2),
        ("selfmod", 0.05, 3),
        ("faults", 0.05, 4),
    ],
)
def test_every_page_may_be_remapped(
    paging: PagingMode, workload: str, every_ms: float, seed: int
) -> None:
    """Page tables, code being executed and stacks in use included."""
    machine = Machine("48M", scatter_seed=seed)
    options = RemapOptions(every_ms=every_ms, move=0.3, unmap=0.4, share=True, seed=seed)
    with VirtualMachine(machine, memory="24M", paging=paging) as vm:
        vm.load(image_path("bundled"), append=f"workload={workload} seed={seed + 1}")
        remapper = Remapper(vm, options, 0)
        while vm.run_quantum(int(every_ms * 1e6)) is None:
            if remapper() and remapper.rounds % 5 == 0:
                assert check_machine(machine, [vm.vmm]) == []
            assert vm.host_seconds < 120
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.SUCCESS, bytes(vm.serial_log[-300:])
        assert check_machine(machine, [vm.vmm]) == []
        statistics = vm.vmm.statistics()
        assert statistics.moved > 0
        assert statistics.brought_back > 0
        assert remapper.rounds > 3
    assert machine.free_frames == machine.frames


@pytest.mark.parametrize("paging", MODES)
def test_pages_are_shared_and_unshared(paging: PagingMode) -> None:
    machine = Machine("64M", scatter_seed=1)
    options = RemapOptions(every_ms=5, share=True)
    with VirtualMachine(machine, memory="32M", paging=paging) as vm:
        vm.load(image_path("bundled"), append="workload=identical")
        remapper = Remapper(vm, options, 1)
        outcome = vm.run(timeout=120, on_quantum=lambda _: remapper())
        assert outcome.reason is EndReason.SUCCESS
        statistics = vm.vmm.statistics()
        assert statistics.shares > 0
        assert statistics.share_breaks > 0


@pytest.fixture(scope="session")
def memtest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's memtest86+, from its package; never part of this project."""
    folder = tmp_path_factory.mktemp("memtest")
    command = "apt-get download -q memtest86+ && dpkg -x memtest86+_*.deb ."
    subprocess.run(["bash", "-c", command], cwd=folder, check=True, capture_output=True)
    return folder / "boot" / "memtest86+x64.bin"


def plain(text: str) -> str:
    """The screen's text without the sequences that move the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", " ", text)


def _memtest(image: Path, paging: PagingMode, memory: str, remap: bool, passes: int) -> str:
    """Run until a pass is complete (``passes``), or for one test of the first pass (0)."""
    machine = Machine("128M", scatter_seed=2)
    random = np.random.default_rng(4)
    with VirtualMachine(machine, memory=memory, paging=paging) as vm:
        vm.load(image, append="console=ttyS0")
        quanta = 0
        while vm.run_quantum() is None:
            text = vm.serial_log.decode("latin1")
            tail = text[-4000:]
            assert "Errors" not in tail or "Errors: 0" in tail
            if passes and re.search(r"Pass: +[1-9]", plain(tail)):
                break
            if not passes and "#6" in text:
                break
            quanta += 1
            if remap and quanta % 10 == 0:
                pages = random.permutation(vm.vmm.pmap.pages)
                half = pages[: pages.size // 2]
                vm.vmm.unmap(half[::2])
                vm.vmm.move(half[1::2])
                if quanta % 100 == 0:
                    assert check_machine(machine, [vm.vmm]) == []
        assert vm.outcome is None, vm.outcome
        assert "Errors: 0" in text
        if remap:
            assert vm.vmm.statistics().brought_back > 1000
    return text


@pytest.mark.parametrize("paging", MODES)
@pytest.mark.parametrize("remap", [False, True])
def test_memtest_finds_no_error(memtest: Path, paging: PagingMode, remap: bool) -> None:
    """The first tests of memtest86+, bounded for CI; the whole pass is an acceptance test."""
    text = _memtest(memtest, paging, "8M", remap, passes=0)
    assert "8MB" in text


@pytest.mark.acceptance
@pytest.mark.parametrize("paging", MODES)
@pytest.mark.parametrize("remap", [False, True])
def test_memtest_completes_a_pass(memtest: Path, paging: PagingMode, remap: bool) -> None:
    _memtest(memtest, paging, "64M", remap, passes=1)
