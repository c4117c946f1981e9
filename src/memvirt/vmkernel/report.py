# SPDX-License-Identifier: Apache-2.0
"""Samples: what the VMkernel knows, in the columns of esxtop. Reads everything, changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

from .admission import Admission
from .host_state import HostStateMachine
from .managed import ManagedVm
from .protocols import MachineFrames
from .samples import HostMemory, Sample, VmMemory
from .sharing import PageSharing

_COMPRESS, _SWAP = "compress", "swap"  # the places that have columns of their own
# What is still true of a VM that is off.
_KEPT = {
    "vm_id", "name", "group", "condition", "reason", "memory", "entitled_min", "entitled_max",
    "shares", "balloon_driver", "swap_reads_total", "swap_writes_total", "zips_total",
    "unzips_total",
}  # fmt: skip


class Reported(Protocol):
    """What a sample is made of: the VMkernel."""

    machine: MachineFrames
    vms: list[ManagedVm]
    departed: list[VmMemory]
    time_ns: int
    own_frames: int
    min_free: int
    state: HostStateMachine
    admission: Admission
    sharing: PageSharing

    @property
    def free(self) -> int: ...


def sample(kernel: Reported) -> Sample:
    """The host and its VMs now; VMs that are off keep their place, with nothing but a name."""
    for vm in kernel.vms:
        vm.refresh()
    rows = [_vm_row(kernel, vm) for vm in kernel.vms]
    gone = kernel.departed
    return Sample(_host_row(kernel, rows + gone), tuple(sorted(rows + gone, key=_order)))


def _order(row: VmMemory) -> int:
    return row.vm_id


def _host_row(kernel: Reported, rows: Sequence[VmMemory]) -> HostMemory:
    usages = [vm.usage for vm in kernel.vms]
    common = round(sum(usage.shared_cost for usage in usages))
    guest = sum(usage.private for usage in usages) + common
    return HostMemory(
        time_ns=kernel.time_ns,
        state=kernel.state.state,
        total=kernel.machine.frames,
        vmkernel=kernel.own_frames,
        overhead=kernel.machine.frames - kernel.own_frames - guest - kernel.free,
        guest=guest,
        free=kernel.free,
        min_free=kernel.min_free,
        reserved=kernel.admission.reserved,
        unreserved=kernel.admission.unreserved,
        shared=sum(usage.shared for usage in usages),
        common=common,
        zero=sum(row.zero for row in rows),
        swapped=sum(row.swapped for row in rows),
        swap_target=sum(row.swap_target for row in rows),
        swap_reads_total=sum(row.swap_reads_total for row in rows),
        swap_writes_total=sum(row.swap_writes_total for row in rows),
        zipped=sum(row.zipped for row in rows),
        zip_frames=sum(row.cache_used for row in rows),
        stored=sum(row.stored for row in rows),
        balloon=sum(row.balloon for row in rows),
        balloon_target=sum(row.balloon_target for row in rows),
        balloon_max=sum(row.balloon_max for row in rows),
    )


def _vm_row(kernel: Reported, vm: ManagedVm) -> VmMemory:
    usage, activity, settings = vm.usage, vm.activity, vm.settings
    compress, swap = usage.kept_in(_COMPRESS), usage.kept_in(_SWAP)
    return VmMemory(
        vm_id=vm.guest.vm_id,
        name=vm.name,
        group=settings.group,
        condition=str(vm.condition),
        reason=vm.reason,
        memory=settings.memory,
        granted=usage.granted,
        consumed=usage.consumed,
        target=int(vm.target),
        entitled_min=settings.reservation,
        entitled_max=settings.maximum,
        shares=settings.shares,
        active_percent=100 * vm.active,
        active_slow_percent=100 * activity.slow,
        active_fast_percent=100 * activity.fast,
        active_next_percent=100 * activity.next,
        touched=round(vm.active * settings.memory),
        balloon_driver=vm.has_driver,
        balloon=vm.balloon_size,
        balloon_target=vm.balloon_target,
        balloon_max=vm.balloon_max,
        swapped=swap.pages,
        swap_target=vm.swap_target,
        swap_reads_total=swap.taken_total,
        swap_writes_total=swap.put_total,
        zipped=compress.pages,
        cache_used=compress.frames,
        cache_max=vm.cache_max,
        zips_total=compress.put_total,
        unzips_total=compress.taken_total,
        stored=sum(kept.pages for kept in usage.kept.values()) - compress.pages - swap.pages,
        shared=usage.shared,
        zero=kernel.sharing.zero_pages(vm.guest),
        shared_saved=usage.shared - usage.shared_cost,
        hints=kernel.sharing.hints(vm.guest) * vm.guest.granule,
        overhead=usage.table_frames + usage.reserve_frames,
        overhead_max=vm.overhead_max,
        large=usage.large,
    )


def departed(kernel: Reported, vm: ManagedVm) -> VmMemory:
    """The row of a VM that is powered off: its name, its totals, and no memory."""
    row = _vm_row(kernel, vm)
    nothing: Any = {field.name: 0 for field in fields(VmMemory) if field.name not in _KEPT}
    return replace(row, **nothing, condition="off", reason="", balloon_driver=False)
