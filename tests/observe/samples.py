# SPDX-License-Identifier: Apache-2.0
"""Samples made by hand: a host with a few VMs whose numbers are easy to follow."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from memvirt.vmkernel.samples import HostMemory, HostState, Sample, VmMemory

_HOST: Any = {field.name: 0 for field in fields(HostMemory)}
_VM: Any = {field.name: 0 for field in fields(VmMemory)}
HOST = replace(HostMemory(**_HOST), state=HostState.SOFT, total=25_600, free=2560, min_free=1536)
VM = replace(
    VmMemory(**_VM), vm_id=1, name="one", group="", condition="running", reason="", memory=16_384,
    granted=8192, consumed=4096.0, shares=640, balloon_driver=True, swapped=256,
)  # fmt: skip


def sample(time_ns: int, *, swap_reads: int = 0, names: tuple[str, ...] = ("one", "two")) -> Sample:
    vms = tuple(
        replace(VM, vm_id=number, name=name, swap_reads_total=swap_reads)
        for number, name in enumerate(names, 1)
    )
    total = swap_reads * len(names)
    return Sample(replace(HOST, time_ns=time_ns, swap_reads_total=total), vms)
