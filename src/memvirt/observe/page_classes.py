# SPDX-License-Identifier: Apache-2.0
"""The class of every page of a host, guest-physical and machine, as arrays of one byte a page.

A class is what a person wants to see of a page at a glance: a colour. It says less than the pmap's
state and flags do together, and is made from whole arrays, so that a picture of millions of pages
costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from memvirt.machine.memory import FrameKind, MachineMemory
from memvirt.mmu.page_state import FLAG_BALLOONED, FLAG_SHADOWED
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmm.pmap import LARGE_PAGES, PageState, Pmap

Classes = np.ndarray[tuple[int], np.dtype[np.uint8]]
Owners = np.ndarray[tuple[int], np.dtype[np.int16]]


class GuestClass(IntEnum):
    """What a guest-physical page is to the host."""

    UNMAPPED = 0  # never touched, or a page of zeroes the host has let go
    PRIVATE = 1
    SHARED = 2
    BALLOONED = 3
    COMPRESSED = 4
    SWAPPED = 5
    LARGE = 6  # private, part of a large page
    PAGE_TABLE = 7  # private, holds a guest page table that a shadow table derives from
    STORED = 8  # in a backing store of another kind


class FrameClass(IntEnum):
    """What a frame of machine memory is used for."""

    FREE = 0
    GUEST = 1
    SHARED = 2
    SHADOW = 3
    NESTED = 4
    RESERVE = 5
    VMKERNEL = 6
    COMPRESSED = 7


_FRAME_CLASS = np.zeros(max(FrameKind) + 1, np.uint8)
for _kind in FrameKind:
    _FRAME_CLASS[_kind] = FrameClass[_kind.name]

_GUEST_CLASS = np.zeros(max(PageState) + 1, np.uint8)
for _state in PageState:
    _GUEST_CLASS[_state] = GuestClass[_state.name]


@dataclass(frozen=True, slots=True)
class VmPages:
    """The pages of one VM: ``classes`` by PPN (GuestClass), ``frames`` by PPN.

    ``frames`` is the MPN of a resident page, and -1 where there is none.
    """

    vm_id: int
    name: str
    classes: Classes
    frames: np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class HostPages:
    """All pages of a host at one quiescent point. The arrays are copies.

    ``frames`` is by MPN (FrameClass), ``owners`` the position in ``vms`` of the VM that owns a
    frame, -1 for none or several.
    """

    vms: tuple[VmPages, ...]
    frames: Classes
    owners: Owners


def guest_classes(pmap: Pmap) -> Classes:
    """Class of every guest-physical page: shape (pages,), dtype uint8."""
    classes = _GUEST_CLASS[pmap.state]
    private = pmap.state == PageState.PRIVATE
    if pmap.large.any():
        large = np.repeat(pmap.large != 0, LARGE_PAGES)[: pmap.pages]
        classes[private & large] = GuestClass.LARGE
    classes[private & (pmap.flags & FLAG_SHADOWED != 0)] = GuestClass.PAGE_TABLE
    classes[pmap.flags & FLAG_BALLOONED != 0] = GuestClass.BALLOONED
    return classes


def _frames(pmap: Pmap) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    resident = (pmap.state == PageState.PRIVATE) | (pmap.state == PageState.SHARED)
    return np.where(resident, pmap.frame.astype(np.int32), np.int32(-1))


def frame_classes(machine: MachineMemory) -> Classes:
    """Class of every frame: shape (frames,), dtype uint8."""
    return np.asarray(_FRAME_CLASS[machine.kind])


def _owners(machine: MachineMemory, vms: Sequence[VirtualMachine]) -> Owners:
    if not vms:
        return np.full(machine.frames, -1, np.int16)
    position = np.full(max(vm.vm_id for vm in vms) + 2, -1, np.int16)
    for index, vm in enumerate(vms):
        position[vm.vm_id] = index
    # Owners are VM ids; negative ones are no VM, and VMs that left have no place: the last element.
    return np.asarray(position[np.clip(machine.owner, -1, position.size - 1)])


def host_pages(machine: MachineMemory, vms: Sequence[VirtualMachine]) -> HostPages:
    """The pages of ``vms`` and of the machine. Call it while every processor is stopped."""
    pages = tuple(
        VmPages(vm.vm_id, vm.name, guest_classes(vm.vmm.pmap), _frames(vm.vmm.pmap)) for vm in vms
    )
    return HostPages(pages, frame_classes(machine), _owners(machine, vms))


def names(classes: type[IntEnum]) -> list[str]:
    """Names of classes for people, by number."""
    members: list[Any] = list(classes)
    return [member.name.lower().replace("_", " ") for member in members]
