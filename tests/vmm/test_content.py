# SPDX-License-Identifier: Apache-2.0
"""Where the content of a page is, in every state, and what an error on the way back leaves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from memvirt.address import PAGE_BYTES
from memvirt.machine.memory import FrameKind, MachineMemory, MachineMemoryExhausted
from memvirt.vmm.balloon import BalloonedPages
from memvirt.vmm.check import check_machine
from memvirt.vmm.content import COMPRESS, SWAP, PageLocation, StoreUse
from memvirt.vmm.eviction import EvictionOrder
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.pmap import KEPT, RESIDENT, PageState
from memvirt.vmm.stores.backing import BackingStoreError, PageCorrupted
from memvirt.vmm.stores.compression_cache import CompressionCache
from memvirt.vmm.stores.held_pages import HeldPages

PAGES = 32
MODES = [PagingMode.SHADOW, PagingMode.NESTED]


class Unreadable(HeldPages):
    """A store that cannot give a page back, for ``error``, while it has one."""

    error: Exception | None = None

    def read(self, slot: int) -> bytes:
        if self.error is not None:
            raise self.error
        return super().read(slot)


def page(seed: int, noise: int = PAGE_BYTES) -> bytes:
    """A page of which ``noise`` bytes do not compress."""
    return np.random.default_rng(seed).bytes(noise) + b"\x07" * (PAGE_BYTES - noise)


class Vm:
    """A VM with one page in each state."""

    def __init__(self, paging: PagingMode) -> None:
        self.machine = MachineMemory(1024)
        self.swap, self.far = Unreadable(), Unreadable()
        self.vmm = VirtualMachineMonitor(self.machine, PAGES, paging, backing=self.swap)
        self.contents = self.vmm.contents
        self.contents.set_store(COMPRESS, CompressionCache(self.machine, 0, 4))
        self.contents.set_store("far", self.far)
        self.expected = {0: bytes(PAGE_BYTES), 1: page(1), 2: page(2), 3: page(3, 900)}
        self.expected |= {4: page(4), 5: page(5, 900)}
        for ppn, content in self.expected.items():
            if ppn:
                self.vmm.write_physical(ppn << 12, content)
        self.vmm.make_shared(2)
        self.vmm.unmap([3], EvictionOrder((COMPRESS,)))
        self.vmm.unmap([4], EvictionOrder((SWAP,)))
        self.vmm.unmap([5], EvictionOrder(("far",)))

    def check(self) -> None:
        assert check_machine(self.machine, [self.vmm]) == []
        for ppn, content in self.expected.items():
            assert self.contents.read(ppn) == content


@pytest.fixture(params=MODES, ids=lambda mode: mode.name)
def vm(request: pytest.FixtureRequest) -> Vm:
    return Vm(request.param)


def test_each_page_is_in_one_place(vm: Vm) -> None:
    mpn = [int(vm.vmm.pmap.frame[ppn]) for ppn in range(6)]
    assert [vm.contents.locate(ppn) for ppn in range(6)] == [
        PageLocation(PageState.UNMAPPED),
        PageLocation(PageState.PRIVATE, mpn=mpn[1]),
        PageLocation(PageState.SHARED, mpn=mpn[2]),
        PageLocation(PageState.COMPRESSED, store=COMPRESS, slot=0),
        PageLocation(PageState.SWAPPED, store=SWAP, slot=0),
        PageLocation(PageState.STORED, store="far", slot=0),
    ]
    assert {*RESIDENT, *KEPT, PageState.UNMAPPED} == set(PageState)
    assert vm.contents.kept().tolist() == [3, 4, 5]
    assert vm.contents.use() == {
        COMPRESS: StoreUse(pages=1, frames=1, put_total=1),
        SWAP: StoreUse(pages=1, put_total=1),
        "far": StoreUse(pages=1, put_total=1),
    }
    vm.check()
    with pytest.raises(IndexError, match="PPN 0x20 is beyond the VM's 32"):
        vm.contents.locate(PAGES)


def test_every_page_comes_back(vm: Vm) -> None:
    for ppn in range(6):
        vm.vmm.bring_back(ppn, write=True)
        assert vm.contents.locate(ppn).state is PageState.PRIVATE
        vm.check()
    assert len(vm.swap) == len(vm.far) == 0
    assert [use.taken_total for use in vm.contents.use().values()] == [1, 1, 1]
    statistics = vm.vmm.statistics()
    assert (statistics.brought_back, statistics.unzips, statistics.swap_reads) == (3, 1, 1)


def test_the_balloon_empties_every_place(vm: Vm) -> None:
    ppns = np.arange(6)
    assert BalloonedPages(vm.vmm).give_up(ppns).all()
    vm.expected = dict.fromkeys(range(6), bytes(PAGE_BYTES))
    vm.vmm.settle()
    vm.check()
    assert all(use.pages == use.frames == 0 for use in vm.contents.use().values())


@pytest.mark.parametrize("ppn", [4, 5])
@pytest.mark.parametrize("error", [BackingStoreError("later"), PageCorrupted("gone")])
def test_a_page_that_cannot_be_read_leaves_everything_as_it_was(
    vm: Vm, ppn: int, error: Exception
) -> None:
    """The sampled flags too: a page that was not had was not touched."""
    vm.vmm.begin_sample([ppn])
    vm.vmm.watch([ppn])
    free = vm.machine.free_frames
    vm.swap.error = vm.far.error = error
    with pytest.raises(type(error)):
        vm.vmm.bring_back(ppn, write=False)
    assert vm.vmm.untouched([ppn]).all()
    assert vm.vmm.idle([ppn]).all()
    assert vm.machine.free_frames == free
    vm.swap.error = vm.far.error = None
    vm.check()
    vm.vmm.bring_back(ppn, write=False)
    assert not vm.vmm.untouched([ppn]).any()
    vm.check()


@pytest.mark.parametrize(
    "act",
    [
        lambda vm, ppn: vm.bring_back(ppn, write=True),
        lambda vm, ppn: vm.write_physical(ppn << 12, b"x"),
        lambda vm, ppn: vm.move([1]),
    ],
)
def test_without_a_frame_nothing_changes(
    vm: Vm, act: Callable[[VirtualMachineMonitor, int], object]
) -> None:
    vm.vmm.reserve.give_back(0)
    vm.machine.allocate(vm.machine.free_frames, kind=FrameKind.VMKERNEL)
    for ppn in (3, 4, 5):
        before = vm.contents.locate(ppn)
        with pytest.raises(MachineMemoryExhausted):
            act(vm.vmm, ppn)
        assert vm.contents.locate(ppn) == before
    vm.check()


def test_a_store_with_pages_stays(vm: Vm) -> None:
    with pytest.raises(ValueError, match='store "swap" still has pages'):
        vm.contents.set_store(SWAP, HeldPages())
    vm.vmm.bring_back(4, write=False)
    vm.contents.set_store(SWAP, HeldPages())
    vm.check()


def test_pages_spill_to_the_stores_behind_in_order(vm: Vm) -> None:
    """The compression cache of 4 frames is full: its oldest go to the first store behind it."""
    order = EvictionOrder((COMPRESS, "far", SWAP), frozenset((COMPRESS,)))
    for ppn in range(8, 24):
        vm.expected[ppn] = page(ppn, 1800)
        vm.vmm.write_physical(ppn << 12, vm.expected[ppn])
        eviction = vm.vmm.unmap([ppn], order)
        assert eviction.unmapped == 1
        vm.check()
    use = vm.contents.use()
    assert use[COMPRESS].frames <= 4
    assert use["far"].pages == 17 + 1 - use[COMPRESS].pages
    assert use[SWAP].pages == 1
