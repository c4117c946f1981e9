# SPDX-License-Identifier: Apache-2.0
"""VMs with something in every structure the checker audits, and the places where it can be damaged.

The only module of the checker's tests that knows how the VMM keeps its state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from memvirt.machine.memory import MachineMemory
from memvirt.mmu import page_state
from memvirt.mmu.entry import ENTRY_ADDRESS_MASK
from memvirt.mmu.mmu_state import NESTED_CACHE_ENTRIES
from memvirt.vmm.balloon import BalloonedPages
from memvirt.vmm.check import CheckLevel, Violation, check_machine
from memvirt.vmm.content import COMPRESS, SWAP
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.pmap import PageState
from memvirt.vmm.stores.compression_cache import CompressionCache

from .driver import PRESENT, USER, WRITABLE, Driver

DATA = 16  # first PPN of the guest's data
PRIVATE_PPN, OTHER_PPN = DATA, DATA + 1
SHARED_PPN, SHARED_TOO = DATA + 4, DATA + 5
SWAPPED_PPN, SWAPPED_TOO = DATA + 6, DATA + 7
COMPRESSED_PPN, COMPRESSED_TOO = DATA + 8, DATA + 9
BALLOONED_PPN = DATA + 10
UNMAPPED_PPN = DATA + 11
MAPPED = 12  # virtual page i maps PPN DATA + i


class Subject:
    """One VM (and its machine) in which every rule of the checker has something to look at."""

    def __init__(
        self,
        paging: PagingMode,
        *,
        pages: int = 64,
        frames: int = 2048,
        scatter_seed: int | None = 3,
    ) -> None:
        self.driver = Driver(paging, pages=pages, frames=frames, scatter_seed=scatter_seed)
        self.machine: MachineMemory = self.driver.machine
        self.vmm: VirtualMachineMonitor = self.driver.vmm
        self.paging = paging
        self.cache = CompressionCache(self.machine, self.vmm.vm_id, 8)
        self.vmm.contents.set_store(COMPRESS, self.cache)
        self._fill()

    def _fill(self) -> None:
        driver, vmm = self.driver, self.vmm
        for page in range(MAPPED):
            driver.set_entry(page, (DATA + page) << 12 | PRESENT | WRITABLE | USER)
        for page in range(MAPPED - 2):
            driver.write(page << 12, 0x1000 + page)
        for ppn in (SWAPPED_PPN, SWAPPED_TOO):  # noise does not compress
            noise = np.random.default_rng(ppn).integers(0, 256, 4096, np.uint8)
            vmm.write_physical(ppn << 12, noise.tobytes())
        for ppn in (SHARED_PPN, SHARED_TOO):
            vmm.write_physical(ppn << 12, bytes([7]) * 4096)
        mpn = vmm.make_shared(SHARED_PPN)
        assert vmm.share([SHARED_TOO], mpn).tolist() == [SHARED_TOO]
        vmm.unmap([SWAPPED_PPN, SWAPPED_TOO, COMPRESSED_PPN, COMPRESSED_TOO])
        self.give_up(BALLOONED_PPN)
        vmm.settle()
        driver.load_root(0)
        for page in (0, 1, 2, 3, 4, 5):
            driver.read(page << 12)
        driver.write(0, 1)
        for ppn, state in (
            (PRIVATE_PPN, PageState.PRIVATE),
            (SHARED_PPN, PageState.SHARED),
            (SWAPPED_PPN, PageState.SWAPPED),
            (COMPRESSED_PPN, PageState.COMPRESSED),
            (BALLOONED_PPN, PageState.UNMAPPED),
        ):
            assert vmm.pmap.state_of(ppn) is state, (ppn, vmm.pmap.state_of(ppn))

    def check(self, level: CheckLevel = CheckLevel.STORES) -> list[Violation]:
        return check_machine(self.machine, [self.vmm], level)

    def give_up(self, ppn: int) -> None:
        """The guest's balloon driver gives a page up."""
        BalloonedPages(self.vmm).give_up(np.array([ppn], np.int64))

    def another_vm(self, vm_id: int) -> VirtualMachineMonitor:
        """A second VM on the machine, with the first one's backing store."""
        return VirtualMachineMonitor(
            self.machine, 64, self.paging, vm_id=vm_id, backing=self.vmm.contents.stores[SWAP]
        )

    def audited(self) -> list[Any]:
        """The arrays that rules read, page tables and the reserve among them."""
        vmm, machine = self.vmm, self.machine
        arrays = [
            machine.kind,
            machine.owner,
            machine.guest_ppn,
        ]
        pmap = vmm.pmap
        arrays += [pmap.state, pmap.frame, pmap.flags, pmap.large, self.reserve]
        if self.paging is PagingMode.NESTED:
            tables = [self.nested_table(level) for level in (4, 3, 2, 1)]
            arrays += [self.nested_cache["tag"], self.nested_cache["entry"]]
        else:
            pool = self.pool
            tables = pool.pages["mpn"][pool.pages["used"] != 0].tolist()
            arrays += [pool.pages[name] for name in pool.pages.dtype.names or ()]
            arrays += [pool._hash, pool._parent, pool.rmap_head, pool.rmap_next, pool.rmap_previous]
        return arrays + [self.words[mpn] for mpn in tables]

    # Where things are ---------------------------------------------------------------------------

    @property
    def words(self) -> Any:
        """Machine memory as signed words, a row a frame."""
        return self.machine.content.view(np.int64).reshape(-1, 512)

    def frame(self, ppn: int) -> int:
        return int(self.vmm.pmap.frame[ppn])

    def slot(self, ppn: int) -> int:
        """The slot of a page without a frame."""
        return int(self.vmm.pmap.frame[ppn])

    @property
    def reserve(self) -> Any:
        """MPNs in the reserve, to read and to damage."""
        return self.vmm.reserve._stack[: self.vmm.reserve.count]

    @property
    def free_list(self) -> Any:
        return self.machine.free_list()

    def link(self, mpn: int, following: int) -> None:
        """Let the frame after ``mpn`` on the list of free frames be ``following``."""
        self.machine._free.links[mpn] = following

    def set_counter(self, name: str, value: int) -> None:
        """Change a count or an index that the VMM keeps in its state."""
        setattr(self._owner(name), name, value)

    def counter(self, name: str) -> int:
        return int(getattr(self._owner(name), name))

    def _owner(self, name: str) -> Any:
        """The record that a field is in: the MMU's, the shadow pool's or the VMM's."""
        state = self.vmm.state
        for record in (state, state.mmu, state.shadow):
            if hasattr(record, name):
                return record
        raise AssertionError(f"the VMM's state has no {name}")

    # Shadow tables ------------------------------------------------------------------------------

    @property
    def pool(self) -> Any:
        """The pool of shadow pages and its arrays."""
        return self.vmm.page_tables

    @property
    def shadow_pages(self) -> Any:
        return self.pool.pages

    def shadow_page(self, level: int, *, direct: bool = False) -> int:
        """The first used shadow page of a level that has a present entry."""
        pages = self.shadow_pages
        for index in np.flatnonzero(pages["used"]).tolist():
            if pages["level"][index] == level and bool(pages["direct"][index]) == direct:
                if (self.words[pages["mpn"][index]] & PRESENT).any():
                    return index
        raise AssertionError(f"no shadow page of level {level}")

    def shadow_table(self, index: int) -> Any:
        """The 512 entries of a shadow page."""
        return self.words[self.shadow_pages["mpn"][index]]

    def leaf(self, ppn: int) -> tuple[int, int]:
        """Shadow page and slot of the first entry that maps ``ppn``."""
        link = int(self.pool.rmap_head[ppn])
        assert link >= 0
        return link >> 9, link & 511

    # Nested tables ------------------------------------------------------------------------------

    def nested_table(self, level: int, ppn: int = 0) -> int:
        """MPN of the nested table of ``level`` for ``ppn``."""
        mpn = self.counter("nested_root")
        for above in range(4, level, -1):
            entry = int(self.words[mpn, ppn >> (9 * (above - 1)) & 511])
            assert entry & 7
            mpn = (entry & ENTRY_ADDRESS_MASK) >> 12
        return mpn

    @property
    def nested_cache(self) -> Any:
        """Records {tag, entry} by slot."""
        return self.vmm.page_tables.nested_cache

    def cached(self, ppn: int) -> Any:
        """The nested cache's entry of the 2 MiB with ``ppn``, which it has."""
        record = self.nested_cache[(ppn >> 9) % NESTED_CACHE_ENTRIES]
        assert record["tag"] == (ppn >> 9) + 1
        return record


def make_large(subject: Subject, first: int = 512) -> None:
    """Back 512 pages from ``first`` on by a large page, and map it."""
    vmm = subject.vmm
    for ppn in range(first, first + 512):
        vmm.bring_back(ppn, write=True)
    assert vmm.make_large(first)
    subject.driver.set_entry(0, first << 12 | PRESENT | WRITABLE | USER)
    subject.driver.read(0)


FLAGS = {name: getattr(page_state, f"FLAG_{name}") for name in ("TRACED", "SHADOWED", "BALLOONED")}
Damage = Callable[[Subject], object]
