# SPDX-License-Identifier: Apache-2.0
"""The table of the sharing scan, and the scan itself, against models made of dicts."""

from __future__ import annotations

import numpy as np
import pytest

from memvirt.address import PAGE_BYTES, MpnArray, PpnArray
from memvirt.host.vmm_memory import VmmMemory
from memvirt.machine.memory import MachineMemory
from memvirt.share_table import ShareTable
from memvirt.vmkernel.sharing import PageSharing
from memvirt.vmm.check import check_machine
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor

_PAGES = 96


class _Model:
    """What ``ShareTable`` is to do."""

    def __init__(self) -> None:
        self.frames: dict[int, int] = {}
        self.hints: dict[int, int] = {}  # key -> page

    def drop_page(self, page: int) -> None:
        self.hints = {key: other for key, other in self.hints.items() if other != page}

    def match(self, page: int, key: int) -> tuple[int, int]:
        if self.hints.get(key) != page:
            self.drop_page(page)
        if key in self.frames:
            return self.frames[key], -1
        other = self.hints.setdefault(key, page)
        return -1, -1 if other == page else other


@pytest.mark.parametrize("seed", range(4))
def test_the_table_is_as_its_model(seed: int) -> None:
    random = np.random.default_rng(seed)
    table, model = ShareTable(), _Model()
    assert table.add_pages(400) == 0
    for _ in range(300):
        pages = random.permutation(400)[: random.integers(1, 60)]
        keys = random.integers(1, 300, pages.size).astype(np.uint64)
        mpns, hints, _ = table.match(pages, keys)
        expected = [model.match(*pair) for pair in zip(pages.tolist(), keys.tolist(), strict=True)]
        assert list(zip(mpns.tolist(), hints.tolist(), strict=True)) == expected
        dropped = random.permutation(400)[:20]
        before = len(model.hints)
        for page in dropped.tolist():
            model.drop_page(page)
        assert table.drop_hints(dropped) == before - len(model.hints)
        fresh = [key for key in random.integers(1, 300, 6).tolist() if key not in model.hints]
        frames = random.integers(0, 1 << 40, len(fresh))
        table.set_frames(np.array(fresh, np.uint64), MpnArray(frames))
        model.frames |= dict(zip(fresh, frames.tolist(), strict=True))
        gone = random.integers(1, 300, 5).astype(np.uint64)
        table.drop_frames(gone)
        for key in gone.tolist():
            model.frames.pop(key, None)
        assert (table.frames, table.hints) == (len(model.frames), len(model.hints))
        kept = dict(zip(*(array.tolist() for array in table.all_frames()), strict=True))
        assert kept == model.frames
        known = table.hint_keys(np.arange(400))
        assert {int(known[page]): page for page in np.flatnonzero(known).tolist()} == model.hints


def test_pages_that_leave_take_their_hints_along() -> None:
    table = ShareTable()
    first, second = table.add_pages(100), table.add_pages(100)
    keys = np.arange(1, 201, dtype=np.uint64)
    table.match(np.arange(200), keys)
    table.remove_pages(first, second - first)
    assert (table.pages, table.hints) == (100, 100)
    _, hints, more = table.match(np.arange(100), keys[100:])
    assert more == 0  # each has its own hint still, under its new number
    assert (hints == -1).all()


def test_a_hint_takes_24_bytes_at_most() -> None:
    """Issue 11 section 4: everything that grows with the hints, over their number."""
    for pages in (1000, 98_305, 200_000):
        table = ShareTable()
        table.add_pages(pages)
        for start in range(0, pages, 1024):
            numbers = np.arange(start, min(start + 1024, pages))
            table.match(numbers, (numbers + 1).astype(np.uint64))
        assert table.hints == pages
        assert table.hint_bytes / table.hints <= 24


@pytest.mark.parametrize("paging", [PagingMode.SHADOW, PagingMode.NESTED])
@pytest.mark.parametrize("seed", range(3))
def test_a_scan_keeps_content_and_salts_and_saves_what_it_can(
    paging: PagingMode, seed: int
) -> None:
    """VMs of two salts write at random; after two passes equal pages of a salt are one frame."""
    random = np.random.default_rng(seed)
    machine = MachineMemory(2048)
    sharing = PageSharing(np.random.default_rng(seed))
    vmms, contents = [], []
    for number, salt in enumerate((0, 0, 1)):
        vmm = VirtualMachineMonitor(machine, _PAGES, paging, vm_id=number)
        vmm.share_salt = salt
        vmms.append(vmm)
        contents.append(np.zeros(_PAGES, np.int64))
        sharing.add(VmmMemory(vmm))
    for step in range(8):
        for vmm, content in zip(vmms, contents, strict=True):
            for ppn in random.permutation(_PAGES)[: _PAGES if step == 0 else 20].tolist():
                content[ppn] = random.integers(0, 40)
                page = np.full(PAGE_BYTES // 8, content[ppn], "<u8").tobytes()
                vmm.write_physical(ppn << 12, page)
            sharing.scan(VmmMemory(vmm), _PAGES if step == 7 else 30.5)
        for vmm, content in zip(vmms, contents, strict=True):
            found = [int.from_bytes(vmm.read_page(ppn)[:8], "little") for ppn in range(_PAGES)]
            assert found == content.tolist()
        assert check_machine(machine, vmms) == []
    for vmm in vmms:
        sharing.scan_pages(VmmMemory(vmm), PpnArray(np.arange(_PAGES)))
    for salt in (0, 1):
        mine = [number for number, vmm in enumerate(vmms) if vmm.share_salt == salt]
        frames = np.concatenate([vmms[number].pmap.frame for number in mine])
        known = np.concatenate([contents[number] for number in mine])
        assert np.unique(frames).size == np.unique(known).size
        others = [vmm.pmap.frame for vmm in vmms if vmm.share_salt != salt]
        assert not np.isin(frames, np.concatenate(others)).any()
    for vmm in vmms:
        hints = sharing.hints(VmmMemory(vmm))
        assert 0 <= hints <= _PAGES
    sharing.remove(VmmMemory(vmms[0]))
    assert sharing.scan(VmmMemory(vmms[1]), _PAGES) == 0
