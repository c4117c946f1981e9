# SPDX-License-Identifier: Apache-2.0
"""Machine memory as a whole: every frame free or owned, every reference counted (I3, I4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from memvirt.address import MachinePageNumber
from memvirt.machine.memory import NOBODY, FrameKind, MachineMemory
from memvirt.vmm.pmap import PageState

from .sources import (
    frame_text,
    free_list,
    given_up_frames,
    in_machine,
    reserve_frames,
    words_of,
)
from .violation import Array, Told, Violation

if TYPE_CHECKING:
    from memvirt.vmm.monitor import VirtualMachineMonitor

_NOBODYS = (FrameKind.FREE, FrameKind.SHARED, FrameKind.VMKERNEL)


def check_frames(
    machine: MachineMemory, vmms: Sequence[VirtualMachineMonitor]
) -> Iterator[Violation]:
    """Rules of all frames. ``vmms`` are all VMs on ``machine``."""
    yield from _check_free_list(machine)
    yield from _check_owners(machine, vmms)
    yield from _check_references(machine, vmms)
    for vmm in vmms:
        yield from _check_guest_frames(machine, vmm)


def _check_free_list(machine: MachineMemory) -> Iterator[Violation]:
    listed = free_list(machine)
    exist = in_machine(machine, listed)
    told = Told("I4", "free list")
    for mpn in told.first(listed[~exist]):
        yield Violation("I4", "free list", frame_text(machine, mpn), "frames of this machine")
    yield from told.rest()
    mpns, times = np.unique(listed[exist], return_counts=True)
    for mpn in told.first(mpns[times > 1]):
        yield Violation("I4", "free list", f"MPN {mpn:#x} twice", "every frame once")
    yield from told.rest()
    on_list = np.zeros(machine.frames, bool)
    on_list[mpns] = True
    is_free = machine.kind == FrameKind.FREE
    for mpn in told.first(on_list != is_free):
        has = "listed: " if on_list[mpn] else "not listed: "
        found = has + frame_text(machine, mpn)
        yield Violation("I4", "free list", found, "free if and only if listed")
    yield from told.rest()


def _check_owners(
    machine: MachineMemory, vmms: Sequence[VirtualMachineMonitor]
) -> Iterator[Violation]:
    """A frame for one VM belongs to one of the VMs there are; a frame for all to nobody."""
    known = np.isin(machine.kind, list(FrameKind))
    told = Told("I4", "kinds of frames")
    for mpn in told.first(~known):
        kinds = ", ".join(kind.name for kind in FrameKind)
        yield Violation("I4", "frame", frame_text(machine, mpn), f"one of {kinds}")
    yield from told.rest()
    nobodys = np.isin(machine.kind, _NOBODYS)
    owned = np.isin(machine.owner, [vmm.vm_id for vmm in vmms])
    told = Told("I4", "owners of frames")
    for mpn in told.first(known & nobodys & (machine.owner >= 0)):
        yield Violation("I4", "frame", frame_text(machine, mpn), f"owner {NOBODY} (nobody)")
    yield from told.rest()
    for mpn in told.first(known & ~nobodys & ~owned):
        ids = ", ".join(str(vmm.vm_id) for vmm in vmms) or "none"
        yield Violation("I4", "orphan", frame_text(machine, mpn), f"owned by a VM of {ids}")
    yield from told.rest()


def _check_references(
    machine: MachineMemory, vmms: Sequence[VirtualMachineMonitor]
) -> Iterator[Violation]:
    """References of a shared frame: the pages that map it, and those given up, not yet released."""
    counted = np.zeros(machine.frames, np.int64)
    for vmm in vmms:
        mapped = vmm.pmap.frame[vmm.pmap.state == PageState.SHARED].astype(np.int64)
        given_up = given_up_frames(vmm)
        named = np.concatenate((mapped, given_up))
        named = named[in_machine(machine, named)]
        np.add.at(counted, named[machine.kind[named] == FrameKind.SHARED], 1)
    shared = machine.kind == FrameKind.SHARED
    told = Told("I3", "shared frames")
    for mpn in told.first(shared & (counted != machine.references[:])):
        where = frame_text(machine, mpn)
        found = f"{machine.references[mpn]} references"
        yield Violation("I3", where, found, f"{counted[mpn]}: the pages that map it")
    yield from told.rest()


def _check_guest_frames(machine: MachineMemory, vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """A GUEST frame backs the page it names, or has been given up; the cache counts its own."""
    mine = np.flatnonzero(machine.owner == vmm.vm_id)
    kinds = machine.kind[mine]
    guest = np.setdiff1d(mine[kinds == FrameKind.GUEST], given_up_frames(vmm))
    ppns = machine.guest_ppn[guest].astype(np.int64)
    backs = (ppns >= 0) & (ppns < vmm.pmap.pages)
    page = ppns[backs]
    backs[backs] = (vmm.pmap.state[page] == PageState.PRIVATE) & (
        vmm.pmap.frame[page] == guest[backs]
    )
    told = Told("I4", f"GUEST frames of VM {vmm.vm_id}")
    for mpn in told.first(guest[~backs]):
        expected = f"a page of VM {vmm.vm_id} that is backed by it"
        yield Violation("I4", "orphan", frame_text(machine, mpn), expected)
    yield from told.rest()
    held = sum(store.frames for store in vmm.contents.stores.values())
    found = int(np.count_nonzero(kinds == FrameKind.COMPRESSED))
    if found != held:
        yield Violation("I4", f"VM {vmm.vm_id}", f"{found} COMPRESSED frames", f"{held}")


def check_reserve(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """The reserve holds each of the VM's RESERVE frames once, and nothing else."""
    machine, where = vmm.machine, f"reserve of VM {vmm.vm_id}"
    held = reserve_frames(vmm)
    exist = in_machine(machine, held)
    wrong = ~exist
    mpns = held[exist]
    wrong[exist] = (machine.kind[mpns] != FrameKind.RESERVE) | (machine.owner[mpns] != vmm.vm_id)
    told = Told("I4", where)
    for mpn in told.first(held[wrong]):
        expected = f"a RESERVE frame of VM {vmm.vm_id}"
        yield Violation("I4", where, frame_text(machine, mpn), expected)
    yield from told.rest()
    distinct, times = np.unique(held, return_counts=True)
    for mpn in told.first(distinct[times > 1]):
        yield Violation("I4", where, f"MPN {mpn:#x} twice", "every frame once")
    yield from told.rest()
    owned = np.flatnonzero((machine.kind == FrameKind.RESERVE) & (machine.owner == vmm.vm_id))
    for mpn in told.first(np.setdiff1d(owned, held)):
        yield Violation("I4", "orphan", frame_text(machine, mpn), f"in the {where}")
    yield from told.rest()


def check_reserve_is_zeroed(vmm: VirtualMachineMonitor) -> Iterator[Violation]:
    """No VM sees another's bytes: frames in a reserve hold zeroes only."""
    machine, held = vmm.machine, reserve_frames(vmm)
    mpns: Array = held[in_machine(machine, held)]
    told = Told("I4", f"content of the reserve of VM {vmm.vm_id}")
    for mpn in told.first(mpns[words_of(machine)[mpns].any(axis=1)]):
        byte = int(np.flatnonzero(machine.page(MachinePageNumber(mpn)))[0])
        found = f"{int(machine.page(MachinePageNumber(mpn))[byte]):#x} at byte {byte:#x}"
        yield Violation("I4", f"reserve of VM {vmm.vm_id}: MPN {mpn:#x}", found, "zeroes")
    yield from told.rest()
