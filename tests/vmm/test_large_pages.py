# SPDX-License-Identifier: Apache-2.0
"""Large pages in a nested table: made, walked, sampled, and broken by whatever changes one page."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memvirt.machine.memory import FrameKind
from memvirt.mmu.entry import EPT_LARGE
from memvirt.vmm.check import check_machine
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.paging.nested import nested_entry_at
from memvirt.vmm.pmap import LARGE_PAGES

from .driver import PRESENT, USER, WRITABLE, Driver

FIRST = LARGE_PAGES  # the second run of 512 pages; the first holds the driver's tables


def entry_of(driver: Driver) -> int:
    """The nested entry of level 2 above FIRST."""
    at = int(nested_entry_at(driver.vmm.state, FIRST << 12, 2, False))
    offset = at - driver.machine.host_address
    return int.from_bytes(driver.machine.content[offset : offset + 8].tobytes(), "little")


@pytest.fixture
def driver() -> Driver:
    """A VM whose pages FIRST to FIRST + 511 hold their own number and are one large page."""
    driver = Driver(
        PagingMode.NESTED, pages=4 * LARGE_PAGES, frames=6 * LARGE_PAGES, scatter_seed=None
    )
    for page in range(LARGE_PAGES):
        driver.set_entry(page, ((FIRST + page) << 12) | PRESENT | WRITABLE | USER)
        driver.write(page << 12, page + 1)
    return driver


def large(driver: Driver) -> VirtualMachineMonitor:
    assert driver.vmm.make_large(FIRST)
    assert check_machine(driver.machine, [driver.vmm]) == []
    assert [driver.read(page << 12) for page in (0, 7, 511)] == [1, 8, 512]
    assert entry_of(driver) & EPT_LARGE
    assert check_machine(driver.machine, [driver.vmm]) == []
    return driver.vmm


def test_a_large_page_saves_references(driver: Driver) -> None:
    vmm = driver.vmm
    before = vmm.statistics()
    driver.read(5 << 12)
    small = vmm.statistics().walk_references - before.walk_references
    large(driver)
    before = vmm.statistics()
    driver.read(5 << 12)
    assert vmm.statistics().walk_references - before.walk_references == small - 1
    tables = vmm.state.nested_tables
    assert tables == (vmm.machine.kind == FrameKind.NESTED).sum()


@pytest.mark.parametrize(
    "change",
    [
        lambda vmm: vmm.unmap([FIRST + 9]),
        lambda vmm: vmm.move([FIRST + 9]),
        lambda vmm: vmm.make_shared(FIRST + 9),
        lambda vmm: vmm.break_large(FIRST),
    ],
)
def test_a_change_of_one_page_breaks_it(
    driver: Driver, change: Callable[[VirtualMachineMonitor], object]
) -> None:
    vmm = large(driver)
    change(vmm)
    assert not vmm.pmap.large.any()
    assert vmm.statistics().large_breaks == 1
    assert check_machine(driver.machine, [vmm]) == []
    for page in range(LARGE_PAGES):
        assert driver.read(page << 12) == page + 1
        driver.write(page << 12, page + 2)
    assert not entry_of(driver) & EPT_LARGE
    assert check_machine(driver.machine, [vmm]) == []


def test_sampling_sees_a_large_page_as_one(driver: Driver) -> None:
    vmm = large(driver)
    sample = [FIRST + 3, FIRST + 400]
    vmm.begin_sample(sample)
    assert vmm.pmap.large.any()
    assert vmm.untouched(sample).all()
    driver.read(3 << 12)
    assert not vmm.untouched(sample).any()
    assert entry_of(driver) & EPT_LARGE


def test_only_whole_runs_become_large(driver: Driver) -> None:
    assert not driver.vmm.make_large(2 * LARGE_PAGES)  # never touched
    driver.vmm.make_shared(FIRST)
    assert not driver.vmm.make_large(FIRST)
    with pytest.raises(ValueError, match="cannot begin"):
        driver.vmm.make_large(FIRST + 1)
