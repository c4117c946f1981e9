# SPDX-License-Identifier: Apache-2.0
"""The pmap: every page in exactly one state, and what that state promises of its frame (I4, I6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from memvirt.address import MpnArray
from memvirt.machine.memory import FrameKind
from memvirt.mmu.page_state import FLAG_BALLOONED, FLAG_UNWRITTEN, FLAG_WRITE_CACHED
from memvirt.vmm.pmap import LARGE_PAGES, PageState

from .sources import ballooned_count, frame_text, in_machine
from .violation import Array, Told, Violation

if TYPE_CHECKING:
    from memvirt.vmm.monitor import VirtualMachineMonitor


def state_name(vmm: VirtualMachineMonitor, ppn: int) -> str:
    """The state of a page for people, also of a page that has none or does not exist."""
    if not 0 <= ppn < vmm.pmap.pages:
        return f"beyond the VM's {vmm.pmap.pages} pages"
    state = int(vmm.pmap.state[ppn])
    return PageState(state).name if state in tuple(PageState) else f"state {state}"


def check_pages(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """Rules inside one VM's pmap, and between it and the frames it names."""
    yield from _check_states(vmm)
    yield from _check_counts(vmm)
    yield from _check_unwritten(vmm)
    yield from _check_private(vmm)
    yield from _check_shared(vmm)
    yield from _check_balloon(vmm)
    yield from _check_large(vmm)


def _check_states(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    told = Told("I4", f"pmap of VM {vmm.vm_id}")
    for ppn in told.first(~np.isin(vmm.pmap.state, list(PageState))):
        states = ", ".join(state.name for state in PageState)
        yield Violation("I4", f"PPN {ppn:#x}", state_name(vmm, ppn), f"one of {states}")
    yield from told.rest()


def _check_counts(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    for state, counted in zip(PageState, vmm.pmap.counts.tolist(), strict=True):
        pages = int(np.count_nonzero(vmm.pmap.state == state))
        if pages != counted:
            where = f"pages of VM {vmm.vm_id} that are {state.name}"
            yield Violation("I4", where, f"{pages} pages", f"{counted} counted")


def _check_unwritten(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    unwritten = np.flatnonzero(vmm.pmap.flags & FLAG_UNWRITTEN)
    told = Told("I7", f"unwritten pages of VM {vmm.vm_id}")
    for ppn in told.first(unwritten[vmm.pmap.state[unwritten] != PageState.PRIVATE]):
        yield Violation("I7", f"PPN {ppn:#x}", f"unwritten and {state_name(vmm, ppn)}", "PRIVATE")
    yield from told.rest()
    writable = vmm.pmap.flags[unwritten] & FLAG_WRITE_CACHED != 0
    for ppn in told.first(unwritten[writable]):
        expected = "no translation for writes in the processor"
        yield Violation("I7", f"PPN {ppn:#x}", "unwritten and one", expected)
    yield from told.rest()


def _frames(vmm: VirtualMachineMonitor, state: PageState) -> tuple[Array, Array, Array]:
    """PPNs in a state, their MPNs, and which of these exist."""
    ppns = np.flatnonzero(vmm.pmap.state == state)
    mpns = vmm.pmap.frame[ppns].astype(np.int64)
    return ppns, mpns, in_machine(vmm.machine, mpns)


def _check_private(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    machine = vmm.machine
    ppns, mpns, exist = _frames(vmm, PageState.PRIVATE)
    wrong = ~exist
    ppn, mpn = ppns[exist], mpns[exist]
    wrong[exist] = (
        (machine.kind[mpn] != FrameKind.GUEST)
        | (machine.owner[mpn] != vmm.vm_id)
        | (machine.guest_ppn[mpn] != ppn)
    )
    told = Told("I4", f"private pages of VM {vmm.vm_id}")
    for i in told.first(wrong):
        expected = f"a GUEST frame of VM {vmm.vm_id}, of PPN {ppns[i]:#x}"
        yield Violation("I4", f"PPN {ppns[i]:#x}", frame_text(machine, int(mpns[i])), expected)
    yield from told.rest()


def _check_shared(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    machine = vmm.machine
    ppns, mpns, exist = _frames(vmm, PageState.SHARED)
    wrong = ~exist
    mpn = mpns[exist]
    wrong[exist] = (machine.kind[mpn] != FrameKind.SHARED) | (
        machine.share_salt(MpnArray(mpn)) != vmm.share_salt
    )
    told = Told("I6", f"shared pages of VM {vmm.vm_id}")
    for i in told.first(wrong):
        expected = f"a SHARED frame of salt {vmm.share_salt}"
        yield Violation("I6", f"PPN {ppns[i]:#x}", frame_text(machine, int(mpns[i])), expected)
    yield from told.rest()


def _check_balloon(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    ballooned = np.flatnonzero(vmm.pmap.flags & FLAG_BALLOONED)
    told = Told("I4", f"balloon of VM {vmm.vm_id}")
    for ppn in told.first(ballooned[vmm.pmap.state[ballooned] != PageState.UNMAPPED]):
        found = f"ballooned and {state_name(vmm, ppn)}"
        yield Violation("I4", f"PPN {ppn:#x}", found, "ballooned and UNMAPPED")
    yield from told.rest()
    counted = ballooned_count(vmm)
    if ballooned.size != counted:
        yield Violation("I4", "balloon", f"{ballooned.size} pages", f"{counted} counted")


def _check_large(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """A large page is 512 private pages that lie in order in one aligned run of frames."""
    pmap = vmm.pmap
    for run in np.flatnonzero(pmap.large).tolist():
        first = run * LARGE_PAGES
        where = f"large page of PPN {first:#x}"
        if first + LARGE_PAGES > pmap.pages:
            found = f"{pmap.pages - first} pages up to the end of memory"
            yield Violation("I4", where, found, f"{LARGE_PAGES} pages")
            continue
        frames = pmap.frame[first : first + LARGE_PAGES].astype(np.int64)
        states = pmap.state[first : first + LARGE_PAGES]
        if frames[0] % LARGE_PAGES:
            expected = f"an MPN that is a multiple of {LARGE_PAGES:#x}"
            yield Violation("I4", where, f"MPN {frames[0]:#x}", expected)
        wrong = (states != PageState.PRIVATE) | (frames != frames[0] + np.arange(LARGE_PAGES))
        told = Told("I4", where)
        for i in told.first(wrong):
            found = f"PPN {first + i:#x} {state_name(vmm, first + i)} at {frames[i]:#x}"
            yield Violation("I4", where, found, f"PRIVATE at MPN {frames[0] + i:#x}")
        yield from told.rest()
