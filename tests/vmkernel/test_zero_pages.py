# SPDX-License-Identifier: Apache-2.0
"""The count of pages that are mapped to a frame of zeroes, when frames change their use."""

from __future__ import annotations

import numpy as np
import pytest

from memvirt.address import PAGE_BYTES
from memvirt.host.vmm_memory import VmmMemory
from memvirt.machine.memory import MachineMemory
from memvirt.vmkernel.sharing import PageSharing
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.pmap import PageState

ZEROES, ONES = bytes(PAGE_BYTES), b"\x01" * PAGE_BYTES


class Sharing:
    """VMs by salt, scanned one page list at a time."""

    def __init__(self, *salts: int) -> None:
        self.machine = MachineMemory(1024)
        self.pages = PageSharing(np.random.default_rng(1))
        self.vmms: list[VirtualMachineMonitor] = []
        for number, salt in enumerate(salts):
            vmm = VirtualMachineMonitor(self.machine, 32, PagingMode.NESTED, vm_id=number)
            vmm.share_salt = salt
            self.vmms.append(vmm)
            self.pages.add(VmmMemory(vmm))

    def share(self, number: int, content: bytes, *ppns: int) -> int:
        """Write ``content`` into the pages, in this order, and scan them; the MPN they share."""
        vmm = self.vmms[number]
        for ppn in ppns:
            vmm.write_physical(ppn << 12, content)
        self.pages.scan_pages(VmmMemory(vmm), np.array(ppns))
        assert all(vmm.pmap.state_of(ppn) is PageState.SHARED for ppn in ppns)
        assert np.unique(vmm.pmap.frame[list(ppns)]).size == 1
        return int(vmm.pmap.frame[ppns[0]])

    def counted(self, number: int) -> int:
        guest = VmmMemory(self.vmms[number])
        return guest.mapped_to(self.pages.zero_frames(guest))


def test_pages_of_zeroes_are_counted() -> None:
    host = Sharing(0)
    host.share(0, ZEROES, 1, 2, 3)
    assert host.counted(0) == 3
    host.vmms[0].write_physical(1 << 12, ONES)
    assert host.counted(0) == 2


def test_the_frame_of_zeroes_gets_other_content_and_is_shared_again() -> None:
    host = Sharing(0)
    frame = host.share(0, ZEROES, 1, 2)
    host.vmms[0].write_physical(1 << 12, ONES)
    host.vmms[0].write_physical(2 << 12, ONES)  # the last user takes the frame as it is
    assert host.share(0, ONES, 2, 1) == frame
    assert host.counted(0) == 0
    host.share(0, ZEROES, 4, 5)
    assert host.counted(0) == 2


@pytest.mark.parametrize("content", [ONES, ZEROES], ids=["ones", "zeroes"])
def test_a_frame_that_goes_to_another_salt_counts_there_only(content: bytes) -> None:
    host = Sharing(0, 1)
    frame = host.share(0, ZEROES, 1, 2)
    host.vmms[0].unmap([1, 2])
    assert host.share(1, content, 8, 9) == frame
    assert host.counted(0) == 0
    assert host.counted(1) == (2 if content == ZEROES else 0)
