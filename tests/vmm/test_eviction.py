# SPDX-License-Identifier: Apache-2.0
"""Eviction where it can go wrong: nobody takes a page, no frame is free, a kept page is damaged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from memvirt.address import PAGE_BYTES
from memvirt.machine.content import Pages
from memvirt.machine.memory import FrameKind, MachineMemory
from memvirt.vmm.check import check_machine
from memvirt.vmm.content import COMPRESS, SWAP, PpnArray
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.pmap import PageState
from memvirt.vmm.stores.backing import REFUSED, PageCorrupted, Slots
from memvirt.vmm.stores.compression_cache import CompressionCache
from memvirt.vmm.stores.held_pages import HeldPages

PAGES = 32


class Refusing(HeldPages):
    """A backing store that takes ``room`` more pages."""

    room = 0

    def put(self, ppns: PpnArray, contents: Pages) -> Slots:
        slots = np.full(len(contents), REFUSED, np.int64)
        taken = min(self.room, len(contents))
        self.room -= taken
        slots[:taken] = super().put(ppns[:taken], contents[:taken])
        return slots


def noise(seed: int) -> bytes:
    """A page that does not compress."""
    return np.random.default_rng(seed).bytes(PAGE_BYTES)


def half_noise(seed: int) -> bytes:
    """A page that compresses to a block of 2 KiB, and not to one of 1 KiB."""
    return np.random.default_rng(seed).bytes(1500) + bytes(PAGE_BYTES - 1500)


class Pair:
    """Two VMs of one salt on a machine, the first over a backing store that may refuse."""

    def __init__(self, paging: PagingMode) -> None:
        self.machine = MachineMemory(2048)
        self.store = Refusing()
        self.first = VirtualMachineMonitor(self.machine, PAGES, paging, vm_id=1, backing=self.store)
        self.second = VirtualMachineMonitor(self.machine, PAGES, paging, vm_id=2)

    def put(self, ppn: int, content: bytes) -> None:
        self.first.write_physical(ppn << 12, content)

    def share(self, ppn: int) -> int:
        """Let both VMs use one frame for the page; returns its MPN."""
        self.second.write_physical(ppn << 12, self.first.read_page(ppn))
        mpn = self.first.make_shared(ppn)
        assert self.second.share([ppn], mpn).size == 1
        return mpn

    def use_up_all_frames(self) -> None:
        for vmm in (self.first, self.second):
            vmm.reserve.give_back(0)
        self.machine.allocate(self.machine.free_frames, kind=FrameKind.VMKERNEL)

    def check(self) -> None:
        assert check_machine(self.machine, [self.first, self.second]) == []


@pytest.fixture(params=[PagingMode.SHADOW, PagingMode.NESTED], ids=lambda mode: mode.name)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.first.power_off()
    made.second.power_off()


def test_a_shared_page_nobody_takes_stays_shared_on_a_full_machine(pair: Pair) -> None:
    pair.put(3, noise(3))
    mpn = pair.share(3)
    pair.use_up_all_frames()
    eviction = pair.first.unmap([3])
    assert (eviction.refused, eviction.unmapped) == (1, 0)
    assert pair.first.pmap.state_of(3) is PageState.SHARED
    assert int(pair.first.pmap.frame[3]) == mpn
    assert pair.first.read_page(3) == pair.second.read_page(3) == noise(3)
    pair.check()


def test_a_mixed_batch_on_a_full_machine_loses_nothing(pair: Pair) -> None:
    """Compressible shared pages must not use up the frame a refused private page needs again."""
    pair.first.contents.set_store(COMPRESS, CompressionCache(pair.machine, 1, 8))
    content = {1: noise(1), 2: half_noise(2), 3: half_noise(3), 4: noise(4), 5: bytes(PAGE_BYTES)}
    for ppn, page in content.items():
        pair.put(ppn, page)
    for ppn in (2, 3, 4, 5):
        pair.share(ppn)
    pair.use_up_all_frames()
    eviction = pair.first.unmap(list(content))
    assert eviction.refused + eviction.unmapped == len(content)
    assert eviction.discarded == 1
    for ppn, page in content.items():
        assert pair.first.read_page(ppn) == page
    pair.check()


def test_a_store_that_takes_some_keeps_the_rest_where_they_were(pair: Pair) -> None:
    for ppn in range(8):
        pair.put(ppn, noise(ppn))
    for ppn in range(4, 8):
        pair.share(ppn)
    pair.use_up_all_frames()
    pair.store.room = 6
    eviction = pair.first.unmap(range(8))
    assert (eviction.put_into(SWAP), eviction.refused) == (6, 2)
    assert pair.first.pmap.count(PageState.SHARED) == 2
    assert all(pair.first.read_page(ppn) == noise(ppn) for ppn in range(8))
    assert all(pair.second.read_page(ppn) == noise(ppn) for ppn in range(4, 8))
    pair.check()


def test_a_damaged_compressed_page_costs_no_other_page(pair: Pair) -> None:
    """When it is its turn to leave for swap it stays, and what was on its way out is kept."""
    pair.store.room = 100
    pair.first.contents.set_store(COMPRESS, CompressionCache(pair.machine, 1, 1))
    for ppn in range(4):
        pair.put(ppn, half_noise(ppn))
    assert pair.first.unmap([0, 1]).put_into(COMPRESS) == 2
    frame = int(pair.machine.owned_by(1)[pair.machine.kind[pair.machine.owned_by(1)] == 7][0])
    block = next(at for at in (0, 2048) if damages(pair, frame, at, 0))
    pair.machine.page(frame)[block + 100] ^= 0xFF
    eviction = pair.first.unmap([2, 3])
    assert eviction.unmapped == 2
    for ppn in (1, 2, 3):
        assert pair.first.read_page(ppn) == half_noise(ppn)
    with pytest.raises(PageCorrupted):
        pair.first.read_page(0)
    with pytest.raises(PageCorrupted):
        pair.first.bring_back(0, write=False)
    pair.check()


def damages(pair: Pair, frame: int, block: int, ppn: int) -> bool:
    """True if a flipped byte of this block is one of the page's; it is flipped back."""
    pair.machine.page(frame)[block + 100] ^= 0xFF
    try:
        return pair.first.read_page(ppn) != half_noise(ppn)
    except PageCorrupted:
        return True
    finally:
        pair.machine.page(frame)[block + 100] ^= 0xFF


def test_a_cache_without_any_frame_is_passed_by(pair: Pair) -> None:
    pair.store.room = 100
    pair.first.contents.set_store(COMPRESS, CompressionCache(pair.machine, 1, 8))
    pair.put(1, half_noise(1))
    pair.share(1)
    pair.use_up_all_frames()
    assert pair.first.unmap([1]).put_into(SWAP) == 1
    assert pair.first.read_page(1) == half_noise(1)
    pair.check()
