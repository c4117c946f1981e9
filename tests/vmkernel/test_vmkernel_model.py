# SPDX-License-Identifier: Apache-2.0
"""The VMkernel against a dictionary: any order of guests' accesses, policy, errors and power.

Three kinds of VM on one host, both paging modes. After each step every invariant holds, and every
page reads as its guest last wrote it.
"""

from __future__ import annotations

import errno
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from memvirt.vmkernel.admission import AdmissionError, VmSettings
from memvirt.vmkernel.options import MemoryOptions, Salting
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import PageState
from memvirt.vmm.reserve import FramesWanted
from memvirt.vmm.stores.swap_file import SwapFile
from tests.models import model_settings
from tests.pages import make_page

from .hosts import Guest, Host

PAGES = 640
page_of = functools.cache(make_page)
ppns = st.integers(0, PAGES - 1)
numbers = st.integers(0, 3)
slots = st.integers(0, 3)
contents = st.tuples(st.integers(0, 5), st.sampled_from([0, 300, 1200, 4096]))


class VmKernelModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.content: dict[int, Any] = {}  # VM -> its pages, (PAGES, 4096) bytes
        self.verified: dict[int, dict[int, int]] = {}  # VM -> slot of each kept page seen right
        self.disk_fails = False
        self._write_at = SwapFile._write_at

        def write_at(file: SwapFile, views: list[memoryview], offset: int) -> None:
            if self.disk_fails:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._write_at(file, views, offset)

        SwapFile._write_at = write_at  # type: ignore[method-assign]

    @initialize(
        salting=st.sampled_from(Salting),
        tax=st.sampled_from([0, 75]),
        zip_max=st.sampled_from([0, 5, 30]),
        frames=st.sampled_from([700, 900, 1200]),
        min_free=st.sampled_from([5, 15, 30]),
        filled=st.sampled_from([640, 560, 0]),
        noise=st.sampled_from([4096, 1200]),
    )
    def start(
        self,
        salting: Salting,
        tax: int,
        zip_max: int,
        frames: int,
        min_free: int,
        filled: int,
        noise: int,
    ) -> None:
        options = MemoryOptions(
            ShareForceSalting=salting, IdleTax=tax, MemZipMaxPct=zip_max, ShareScanTime=0.05,
            SamplePeriod=1, SamplePages=20, BalancePeriod=2, MinFreePct=min_free,
        )  # fmt: skip
        self.host = Host(Path(self.folder.name), frames, options, swap=2200)
        # Two VMs to begin with, so that memory is short more often than not.
        for paging, group in ((PagingMode.SHADOW, "g"), (PagingMode.NESTED, "g")):
            guest = self.host.power_on(VmSettings("first", PAGES, 100, group=group), paging)
            self.content[guest.vmm.vm_id] = np.zeros((PAGES, 4096), np.uint8)
        for number in (0, 1):
            self.fill_pages(number, 0, filled, (number, noise))
            self.host.kernel.balance(1_000_000_000)

    def guest(self, number: int) -> Guest | None:
        ids = list(self.host.guests)
        return self.host.guests[ids[number % len(ids)]] if ids else None

    def page(self, guest: Guest, ppn: int) -> Any:
        return self.content[guest.vmm.vm_id][ppn]

    # Power -------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.host.guests) < 4)
    @rule(
        paging=st.sampled_from([PagingMode.SHADOW, PagingMode.NESTED]),
        reservation=st.sampled_from([0, 0, 160]),
        limit=st.sampled_from([None, None, 300]),
        group=st.sampled_from(["", "g", "g"]),
        shares=st.sampled_from([10, 1000]),
    )
    def power_on(
        self, paging: PagingMode, reservation: int, limit: int | None, group: str, shares: int
    ) -> None:
        if paging is PagingMode.SHADOW and self.host.machine.free_frames < 60:
            return  # its first table may not fit
        about = VmSettings(f"vm{shares}", PAGES, shares, reservation, limit, group)
        before = (self.host.kernel.admission.reserved, self.host.kernel.admission.swap_reserved)
        try:
            guest = self.host.power_on(about, paging)
        except AdmissionError:
            assert before == (
                self.host.kernel.admission.reserved,
                self.host.kernel.admission.swap_reserved,
            )
            return
        self.content[guest.vmm.vm_id] = np.zeros((PAGES, 4096), np.uint8)

    @rule(number=numbers)
    def power_off(self, number: int) -> None:
        guest = self.guest(number)
        if guest is not None:
            self.host.power_off(guest.vmm.vm_id)
            del self.content[guest.vmm.vm_id]

    # What guests do ----------------------------------------------------------------------------

    def attempt(self, action: Callable[[], object]) -> bool:
        """False if the VM has to wait: allowed while swap fails, or for a host without a frame."""
        try:
            action()
        except FramesWanted:
            return False
        return True

    @rule(number=numbers, ppn=ppns, slot=slots, value=st.integers(1, (1 << 64) - 1))
    def write(self, number: int, ppn: int, slot: int, value: int) -> None:
        guest = self.guest(number)
        if guest is not None and self.attempt(lambda: guest.write(ppn, slot, value)):
            self.page(guest, ppn).view(np.uint64)[slot] = value
            self.unballoon(guest, ppn)

    @rule(number=numbers, first=ppns, count=st.integers(50, 640), content=contents)
    def fill(self, number: int, first: int, count: int, content: tuple[int, int]) -> None:
        self.fill_pages(number, first, count, content)

    def fill_pages(self, number: int, first: int, count: int, content: tuple[int, int]) -> None:
        """Pages whose content may equal other pages, of this VM and of others."""
        guest = self.guest(number)
        for ppn in range(first, min(first + count, PAGES)):
            if guest is None:
                return
            page = page_of(content[0] + ppn % 97, content[1])
            if not self.attempt(lambda ppn=ppn, page=page: guest.fill(ppn, page)):
                return
            self.page(guest, ppn)[:] = np.frombuffer(page, np.uint8)
            self.unballoon(guest, ppn)

    @rule(number=numbers, ppn=ppns, slot=slots)
    def read(self, number: int, ppn: int, slot: int) -> None:
        guest = self.guest(number)
        if guest is None:
            return
        found: list[int] = []
        if self.attempt(lambda: found.append(guest.read(ppn, slot))):
            assert found == [int(self.page(guest, ppn).view(np.uint64)[slot])]
            self.unballoon(guest, ppn)

    def unballoon(self, guest: Guest, ppn: int) -> None:
        """A touch ends the ballooning of a page."""
        if ppn in guest.balloon.held:
            guest.balloon.held.remove(ppn)

    @rule(number=numbers, first=ppns)
    def follow_balloon(self, number: int, first: int) -> None:
        guest = self.guest(number)
        if guest is not None:
            for ppn in guest.balloon.serve(list(range(first, PAGES))):
                self.page(guest, ppn)[:] = 0

    # What the host does ------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0, 0.1, 1, 3, 10]))
    def pass_time(self, seconds: float) -> None:
        self.host.kernel.balance(int(seconds * 1e9))

    @rule(number=numbers)
    def scan(self, number: int) -> None:
        guest = self.guest(number)
        if guest is not None:
            memory = guest.managed.guest
            self.host.kernel.sharing.scan_pages(memory, np.arange(PAGES))

    @rule(number=numbers, pages=st.integers(1, 200))
    def take(self, number: int, pages: int) -> None:
        guest = self.guest(number)
        if guest is not None:
            guest.managed.refresh()
            self.host.kernel.reclaimer.take_from(guest.managed, pages, "test")

    @rule(frames=st.integers(1, 400))
    def shrink_machine(self, frames: int) -> None:
        withdrawn = self.host.kernel.withdraw(frames)
        assert 0 <= withdrawn <= frames

    @rule()
    def grow_machine(self) -> None:
        self.host.kernel.give_memory_back()

    @rule(fails=st.booleans())
    def disk(self, fails: bool) -> None:
        self.disk_fails = fails

    # What always holds -------------------------------------------------------------------------

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "host"):
            self.host.check()

    @invariant()
    def content_is_what_was_written(self) -> None:
        """All frames, and each kept page that has moved since it was last seen right."""
        for vm_id in self.content:
            self.verify(vm_id, self.verified.get(vm_id, {}))

    def verify(self, vm_id: int, known: dict[int, int]) -> None:
        vmm, expected = self.host.guests[vm_id].vmm, self.content[vm_id]
        pmap = vmm.pmap
        ppns = pmap.resident()
        frames = vmm.machine.content.reshape(-1, 4096)[pmap.frame[ppns]]
        wrong = ppns[(frames != expected[ppns]).any(axis=1)].tolist()
        empty = np.flatnonzero(pmap.state == PageState.UNMAPPED)
        wrong += empty[expected[empty].any(axis=1)].tolist()
        kept = vmm.contents.kept()
        places = {
            ppn: (slot << 3) | state
            for ppn, slot, state in zip(
                kept.tolist(), pmap.frame[kept].tolist(), pmap.state[kept].tolist(), strict=True
            )
        }
        for ppn, place in places.items():
            if known.get(ppn) != place and vmm.read_page(ppn) != expected[ppn].tobytes():
                wrong.append(ppn)
        self.verified[vm_id] = places
        assert not wrong, f"VM {vm_id}: PPN {wrong[0]:#x}, {len(wrong)} in all"

    @invariant()
    def limits_hold(self) -> None:
        for vm_id in self.content:
            guest = self.host.guests[vm_id]
            guest.managed.refresh()
            cache = guest.managed.usage.kept_frames
            assert guest.managed.usage.consumed - cache <= guest.settings.maximum

    def teardown(self) -> None:
        SwapFile._write_at = self._write_at  # type: ignore[method-assign]
        if hasattr(self, "host"):
            for vm_id in self.content:
                self.verify(vm_id, {})
            self.host.kernel.give_memory_back()
            self.host.close()
        self.folder.cleanup()


TestVmKernelModel = VmKernelModel.TestCase
TestVmKernelModel.settings = model_settings(examples=50, steps=40)
