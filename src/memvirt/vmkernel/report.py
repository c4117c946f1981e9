# SPDX-License-Identifier: Apache-2.0
"""Samples: what the VMkernel knows, in the columns of esxtop. Reads everything, changes nothing."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from .managed import ManagedVm
from .statistics import HostMemory, Sample, VmMemory

if TYPE_CHECKING:
    from .vmkernel import VmKernel

# What is still true of a VM that is off.
_KEPT = {
    "vm_id", "name", "group", "condition", "reason", "memory", "entitled_min", "entitled_max",
    "shares", "balloon_driver", "swap_reads_total", "swap_writes_total", "zips_total",
    "unzips_total",
}  # fmt: skip


def sample(kernel: VmKernel) -> Sample:
    """The host and its VMs now; VMs that are off keep their place, with nothing but a name."""
    for vm in kernel.vms:
        vm.refresh()
    rows = [_vm_row(kernel, vm) for vm in kernel.vms]
    gone = kernel.departed
    return Sample(_host_row(kernel, rows + gone), tuple(sorted(rows + gone, key=_order)))


def _order(row: VmMemory) -> int:
    return row.vm_id


def _host_row(kernel: VmKernel, rows: list[VmMemory]) -> HostMemory:
    usages = [vm.usage for vm in kernel.vms]
    shared = sum(usage.shared for usage in usages)
    common = round(sum(usage.shared_cost for usage in usages))
    tables = sum(usage.table_frames for usage in usages)
    reserves = sum(usage.reserve_frames for usage in usages)
    zip_frames = sum(usage.compressed_frames for usage in usages)
    return HostMemory(
        time_ns=kernel.time_ns,
        state=kernel.state.state,
        total=kernel.machine.frames,
        vmkernel=kernel.own_frames,
        overhead=tables + zip_frames,
        guest=sum(usage.private for usage in usages) + common,
        free=kernel.machine.free_frames + reserves,
        min_free=kernel.min_free,
        reserved=kernel.admission.reserved,
        unreserved=kernel.admission.unreserved,
        shared=shared,
        common=common,
        zero=sum(row.zero for row in rows),
        swapped=sum(usage.swapped for usage in usages),
        swap_target=sum(row.swap_target for row in rows),
        swap_reads_total=sum(row.swap_reads_total for row in rows),
        swap_writes_total=sum(row.swap_writes_total for row in rows),
        zipped=sum(usage.compressed for usage in usages),
        zip_frames=zip_frames,
        balloon=sum(row.balloon for row in rows),
        balloon_target=sum(row.balloon_target for row in rows),
        balloon_max=sum(row.balloon_max for row in rows),
    )


def _vm_row(kernel: VmKernel, vm: ManagedVm) -> VmMemory:
    usage, activity, settings = vm.usage, vm.activity, vm.settings
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
        active_percent=100 * activity.estimate,
        active_slow_percent=100 * activity.slow,
        active_fast_percent=100 * activity.fast,
        active_next_percent=100 * activity.next,
        touched=round(activity.estimate * settings.memory),
        balloon_driver=vm.has_driver,
        balloon=vm.balloon_size,
        balloon_target=vm.balloon_target,
        balloon_max=vm.balloon_max,
        swapped=usage.swapped,
        swap_target=vm.swap_target,
        swap_reads_total=usage.swap_reads_total,
        swap_writes_total=usage.swap_writes_total,
        zipped=usage.compressed,
        cache_used=usage.compressed_frames,
        cache_max=vm.cache_max,
        zips_total=usage.zips_total,
        unzips_total=usage.unzips_total,
        shared=usage.shared,
        zero=vm.guest.mapped_to(kernel.sharing.zero_frames(vm.guest)),
        shared_saved=usage.shared - usage.shared_cost,
        hints=kernel.sharing.hints(vm.guest),
        overhead=usage.table_frames + usage.reserve_frames,
        overhead_max=vm.overhead_max,
        large=usage.large,
    )


def departed(kernel: VmKernel, vm: ManagedVm) -> VmMemory:
    """The row of a VM that is powered off: its name, its totals, and no memory."""
    row = _vm_row(kernel, vm)
    nothing: Any = {field.name: 0 for field in fields(VmMemory) if field.name not in _KEPT}
    return replace(row, **nothing, condition="off", reason="", balloon_driver=False)
