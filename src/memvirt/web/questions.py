# SPDX-License-Identifier: Apache-2.0
"""Answers about single pages and addresses, as JSON, in the source's thread between two rounds.

Addresses go out as hexadecimal text, since numbers of JavaScript are exact to 2**53 only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memvirt.address import PAGE_SHIFT, GuestVirtualAddress, PhysicalPageNumber
from memvirt.observe.address_map import map_address
from memvirt.observe.guest_tables import MappedRun, addresses_of, mapped_runs
from memvirt.observe.view import PageUnavailable, live_view
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmm.pmap import PageState

from .source import NothingToSay, SourceError

_MOST_RUNS = 20_000
_WORD = (1 << 64) - 1
_MOST_MAPPINGS = 512  # PPNs listed for one frame: a frame of zeroes may have thousands


def find_vm(vms: Sequence[VirtualMachine], vm_id: int) -> VirtualMachine:
    """The VM with this id. Raises SourceError, NothingToSay if it does not run."""
    for vm in vms:
        if vm.vm_id == vm_id:
            if vm.outcome is not None:
                raise NothingToSay(f"{vm.name} has ended: {vm.outcome.reason.value}")
            return vm
    raise SourceError(f"no VM {vm_id}: it has not been started yet")


def address_of(text: str, what: str = "address") -> int:
    """A number written as people do, hexadecimal after 0x. Raises SourceError."""
    try:
        value = int(text.replace("_", "").replace("`", ""), 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise SourceError(f'{what}: "{text[:40]}" is no number; write for instance 0x400000')
    return value


def map_answer(vm: VirtualMachine, gva: GuestVirtualAddress) -> dict[str, Any]:
    """Every step from a guest virtual address to its frame. Raises SourceError."""
    try:
        return map_address(live_view(vm), GuestVirtualAddress(gva)).as_json()
    except ValueError as error:
        raise SourceError(str(error)) from error


def run_json(run: MappedRun) -> list[Any]:
    """[gva, ppn, pages, page bytes, rights]: rights as "w", "u", "x"."""
    rights = ("w" * run.writable) + ("u" * run.user) + ("x" * run.executable)
    return [hex(run.gva), run.ppn, run.pages, run.page_bytes, rights]


def virtual_answer(vm: VirtualMachine) -> dict[str, Any]:
    """What the guest's current tables map."""
    runs, complete = mapped_runs(live_view(vm))
    return {
        "vm": vm.vm_id,
        "runs": [run_json(run) for run in runs[:_MOST_RUNS]],
        "complete": complete and len(runs) <= _MOST_RUNS,
        "digest": f"{hash(tuple(runs)) & _WORD:x}",
        "cr3": hex(vm.processor.get("cr3")),
    }


def page_answer(
    vm: VirtualMachine, ppn: PhysicalPageNumber, *, content: bool = True
) -> dict[str, Any]:
    """One guest-physical page: state, frame, guest virtual addresses, bytes. Raises SourceError."""
    if not 0 <= ppn < vm.vmm.pmap.pages:
        last = vm.vmm.pmap.pages - 1
        raise SourceError(f"PPN {ppn:#x} is beyond the VM's memory, which ends with {last:#x}")
    view, page = live_view(vm), PhysicalPageNumber(ppn)
    state = view.state_of(page)
    resident = state in (PageState.PRIVATE, PageState.SHARED)
    runs, complete = mapped_runs(view)
    answer: dict[str, Any] = {
        "vm": vm.vm_id,
        "ppn": ppn,
        "gpa": hex(ppn << PAGE_SHIFT),
        "state": state.name.lower(),
        "mpn": int(view.frame[ppn]) if resident else None,
        "addresses": [hex(gva) for gva in addresses_of(runs, ppn)],
        "complete": complete,
    }
    if content:
        try:
            answer["bytes"] = view.read_page(page).hex()
        except PageUnavailable as error:
            answer["unavailable"] = str(error)
    return answer


def frame_answer(vms: Sequence[VirtualMachine], mpn: int) -> dict[str, Any]:
    """One frame: every page of every VM that maps it, with its guest virtual addresses."""
    vms = [vm for vm in vms if vm.outcome is None]
    if not vms:
        raise NothingToSay("All VMs have ended: no frame backs a page.")
    if not 0 <= mpn < vms[0].machine.frames:
        raise SourceError(f"MPN {mpn:#x} is beyond machine memory")
    mappings: list[dict[str, Any]] = []
    total = 0
    for vm in vms:
        pmap = vm.vmm.pmap
        resident = (pmap.state == PageState.PRIVATE) | (pmap.state == PageState.SHARED)
        ppns = np.flatnonzero((pmap.frame == mpn) & resident).tolist()
        total += len(ppns)
        if not ppns:
            continue
        runs, _ = mapped_runs(live_view(vm))
        for ppn in ppns[: max(_MOST_MAPPINGS - len(mappings), 0)]:
            mappings.append(
                {
                    "vm": vm.vm_id,
                    "ppn": ppn,
                    "addresses": [hex(gva) for gva in addresses_of(runs, ppn)],
                }
            )
    return {"mpn": mpn, "mappings": mappings, "total": total}
