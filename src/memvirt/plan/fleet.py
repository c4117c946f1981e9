# SPDX-License-Identifier: Apache-2.0
"""The VMs and hosts a plan is made for: what several files tell, brought together on one time grid.

Series are arrays of shape (VMs, points) of 4 KiB pages, float32, a point for each interval. Where a
VM was off both are NaN. Where a VM was on and an amount was not measured, ``in_use`` or ``active``
is -1: *unknown*, for the plan to try a range of values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from memvirt.vmkernel.admission import VmSettings

from .findings import Finding, Findings, PlanDataError, name_some
from .readings import HostReading, Reading, VmReading

__all__ = ["Fleet", "PlannedVm", "assemble"]

UNKNOWN = -1.0
SHARES_A_MIB = 10  # normal shares, vSphere Resource Management
_PAGES_A_MIB = 256
_SLACK = 1.05  # amounts above the configured memory by less are measurement noise
_HELD = 3  # intervals for which a value lasts if samples are missing
_PLAUSIBLE = (16 * _PAGES_A_MIB, 64 << 28)  # pages: 16 MiB to 64 TiB
_MOST_POINTS = 100_000

Series = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class PlannedVm:
    """One VM. ``apart``: VMs of one name here may not share a host; ``together``: they must."""

    settings: VmSettings
    overhead: float  # pages of machine memory beside its own
    host: str = ""
    apart: str = ""
    together: str = ""
    driver: bool = True  # a balloon driver; assumed where no file says otherwise

    @property
    def name(self) -> str:
        """Its name, unique in the fleet."""
        return self.settings.name


@dataclass(frozen=True)
class Fleet:
    """VMs with their series. ``start`` is the first point's time, in seconds since 1970 (or 0)."""

    vms: tuple[PlannedVm, ...]
    in_use: Series
    active: Series
    start: float
    interval: float
    hosts: tuple[HostReading, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def points(self) -> int:
        """Number of points of each series."""
        return int(self.in_use.shape[1])

    def on(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Where each VM was powered on: shape (VMs, points)."""
        return ~np.isnan(self.in_use)

    def select(self, chosen: Any) -> Fleet:
        """The fleet of some VMs, by their positions."""
        chosen = np.asarray(chosen, np.int64)
        vms = tuple(self.vms[i] for i in chosen)
        return replace(self, vms=vms, in_use=self.in_use[chosen], active=self.active[chosen])


def assemble(
    readings: list[Reading], *, interval: float | None = None, clusters: Sequence[str] = ()
) -> Fleet:
    """One fleet of all that was read; ``interval`` (seconds) overrides the series' own.

    A VM of several files is found by its name. ``clusters``: only VMs and hosts of these. Raises
    PlanDataError if nothing can be planned.
    """
    findings = Findings("all files" if len(readings) > 1 else readings[0].path)
    merged: dict[str, VmReading] = {}
    for reading in readings:
        for key, vm in _by_distinct_name(reading, findings).items():
            merged[key] = _merge(merged[key], vm, findings) if key in merged else vm
    merged = _of_clusters(merged, clusters, findings)
    for vm in merged.values():
        _drop_infinities(vm, findings)
    off = [name for name, vm in merged.items() if not vm.powered_on]
    if off:
        findings.note(f"VMs that are off, planned without memory of their own: {name_some(off)}")
    sizeless = [n for n, vm in merged.items() if vm.powered_on and math.isnan(vm.memory)]
    if sizeless:
        findings.warn(f"VMs without a memory size, left out: {name_some(sizeless)}")
    kept = [vm for n, vm in merged.items() if vm.powered_on and n not in set(sizeless)]
    if not kept:
        raise PlanDataError(f"{findings.path}: no VM that is on and has a memory size")
    measured = [vm for vm in kept if vm.times.size]
    unmeasured = [vm.name for vm in kept if not vm.times.size]
    if unmeasured and measured:
        findings.note(
            f"VMs without measurements, planned as always on and in use by a range: "
            f"{name_some(unmeasured)}"
        )
    start, step, points = _grid([vm for vm in measured if not vm.moment], interval, findings)
    in_use = np.full((len(kept), points), np.nan, np.float32)
    active = np.full((len(kept), points), np.nan, np.float32)
    for row, vm in enumerate(kept):
        _check(vm, findings)
        _place(vm, in_use[row], active[row], start, step)
    return Fleet(
        tuple(_planned(vm, findings) for vm in kept), in_use, active, start, step,
        tuple(
            host for reading in readings for host in reading.hosts
            if not clusters or not host.cluster or host.cluster in clusters
        ),
        tuple(f for reading in readings for f in reading.findings) + tuple(findings.list),
    )  # fmt: skip


def _by_distinct_name(reading: Reading, findings: Findings) -> dict[str, VmReading]:
    out: dict[str, VmReading] = {}
    clones = set()
    for vm in reading.vms:
        name, number = vm.name, 1
        while name in out:
            number += 1
            name = f"{vm.name} ({number})"
            clones.add(vm.name)
        out[name] = replace(vm, name=name)
    if clones:
        findings.warn(
            f"names that several VMs of {reading.path.name} have, told apart by number: "
            f"{name_some(sorted(clones))}"
        )
    return out


def _of_clusters(
    vms: dict[str, VmReading], wanted: Sequence[str], findings: Findings
) -> dict[str, VmReading]:
    """The VMs of ``wanted`` clusters, or all, with a line about it. Raises PlanDataError."""
    there = sorted({vm.cluster for vm in vms.values() if vm.cluster})
    strange = [name for name in wanted if name not in there]
    if strange:
        raise PlanDataError(
            f"{findings.path}: has no VM of cluster {strange[0]}; "
            f"there are {name_some(there, 12) or 'none'}"
        )
    if not wanted:
        if len(there) > 1:
            findings.note(
                f"VMs of {len(there)} clusters ({name_some(there)}) are planned together; "
                "--cluster NAME takes those of one"
            )
        return vms
    kept = {name: vm for name, vm in vms.items() if vm.cluster in wanted}
    findings.note(f"{len(vms) - len(kept)} VMs of other clusters are left out")
    return kept


def _merge(one: VmReading, other: VmReading, findings: Findings) -> VmReading:
    """What two files tell of one VM: what the later one says counts, where it says anything."""
    amounts = {}
    for what in ("memory", "reservation", "limit", "shares", "overhead"):
        before, after = getattr(one, what), getattr(other, what)
        amounts[what] = before if math.isnan(after) else after
    if abs(one.memory - other.memory) > 1:  # False if one is unknown
        findings.warn(
            f"VM {one.name}: {one.memory / 256:.0f} MiB in one file, {other.memory / 256:.0f} MiB "
            "in another; the latter counts"
        )
    series = _join(one, other)
    return replace(
        other, **amounts, group=other.group or one.group, apart=other.apart or one.apart,
        together=other.together or one.together,
        host=other.host or one.host, cluster=other.cluster or one.cluster,
        powered_on=one.powered_on and other.powered_on,
        driver=one.driver if other.driver is None else other.driver,
        times=series[0], in_use=series[1], active=series[2],
        moment=all(vm.moment or not vm.times.size for vm in (one, other)),
    )  # fmt: skip


def _join(one: VmReading, other: VmReading) -> tuple[Any, Any, Any]:
    if one.times.size == 0 or (one.moment and not other.moment and other.times.size):
        return other.times, other.in_use, other.active  # an inventory's moment against a series
    if other.times.size == 0 or (other.moment and not one.moment):
        return one.times, one.in_use, one.active
    times = np.union1d(one.times, other.times)
    out = [times]
    for what in ("in_use", "active"):
        column = np.full(times.size, np.nan)
        for vm in (one, other):
            values = getattr(vm, what)
            known = ~np.isnan(values)
            column[np.searchsorted(times, vm.times[known])] = values[known]
        out.append(column)
    return out[0], out[1], out[2]


def _grid(
    vms: list[VmReading], interval: float | None, findings: Findings
) -> tuple[float, float, int]:
    """Start, step and number of points for all series: the most common step between samples."""
    if not vms:
        findings.note("no series of measurements: the plan is for one moment")
        return 0.0, 3600.0, 1
    start = min(float(vm.times[0]) for vm in vms)
    end = max(float(vm.times[-1]) for vm in vms)
    between = [np.diff(vm.times) for vm in vms]
    steps = [float(np.median(after[after > 0])) for after in between if (after > 0).any()]
    step = interval or (float(np.median(steps)) if steps else 3600.0)
    uneven = [s for s in steps if s > 1.5 * step]
    if uneven and interval is None:
        findings.note(f"series of several intervals; the plan's is {step:g} s")
    points = math.floor((end - start) / step + 0.5) + 1
    if points > _MOST_POINTS:
        raise PlanDataError(
            f"{findings.path}: {points:,} intervals of {step:g} s from the first sample to the "
            f"last; name a longer one with --interval"
        )
    return start, step, points


def _check(vm: VmReading, findings: Findings) -> None:
    """Say what cannot be: amounts of a wrong unit. What is above the memory becomes the memory."""
    low, high = _PLAUSIBLE
    if not low <= vm.memory <= high:
        findings.warn(f"VM {vm.name}: configured with {vm.memory / 256:g} MiB; is its unit wrong?")
    for what in ("in_use", "active"):
        values = getattr(vm, what)
        over = values > vm.memory * _SLACK
        if over.any():
            findings.warn(
                f"VM {vm.name}: {what.replace('_', ' ')} of {np.nanmax(values) / 256:.0f} MiB is "
                f"more than its memory, {vm.memory / 256:.0f} MiB, at {int(over.sum())} of "
                f"{values.size} points; taken as all of it. Is a unit wrong?"
            )
        setattr(vm, what, np.minimum(values, vm.memory))
    # Activity is an estimate: what has no content cannot be active.
    vm.active = np.where(np.isnan(vm.active), np.nan, np.fmin(vm.active, vm.in_use))


def _drop_infinities(vm: VmReading, findings: Findings) -> None:
    """An infinite amount is unknown."""
    found = []
    for what in ("memory", "reservation", "limit", "shares", "overhead"):
        if math.isinf(getattr(vm, what)):
            setattr(vm, what, math.nan)
            found.append(what)
    for what in ("in_use", "active"):
        values = getattr(vm, what)
        if np.isinf(values).any():
            setattr(vm, what, np.where(np.isinf(values), np.nan, values))
            found.append(what.replace("_", " "))
    if found:
        findings.warn(f"VM {vm.name}: infinite {', '.join(found)}: taken as unknown")


def _place(vm: VmReading, in_use: Series, active: Series, start: float, step: float) -> None:
    """Put a VM's samples on the grid: the largest of an interval; a gap keeps the last value."""
    if vm.times.size == 0:
        in_use[:], active[:] = UNKNOWN, UNKNOWN
        return
    if vm.moment:
        at = np.arange(in_use.size)  # an inventory's one moment stands for all
        samples = np.zeros(at.size, np.int64)
    else:
        at = np.round((vm.times - start) / step).astype(np.int64)
        samples = np.arange(at.size)
    for row, values in ((in_use, vm.in_use[samples]), (active, vm.active[samples])):
        known = np.where(np.isnan(values), UNKNOWN, values).astype(np.float32)
        np.fmax.at(row, at, known)
        _hold(row)


def _hold(row: Series) -> None:
    """Carry values over short gaps; longer ones mean that the VM was off."""
    known = ~np.isnan(row)
    at = np.arange(row.size)
    last = np.maximum.accumulate(np.where(known, at, -1))
    following = np.flip(np.minimum.accumulate(np.flip(np.where(known, at, row.size))))
    # Only between two samples.
    fill = ~known & (last >= 0) & (following < row.size) & (following - last - 1 <= _HELD)
    row[fill] = row[last[fill]]


def _planned(vm: VmReading, findings: Findings) -> PlannedVm:
    memory = math.ceil(vm.memory)
    reservation = 0 if math.isnan(vm.reservation) else math.ceil(vm.reservation)
    limit = None if math.isnan(vm.limit) or vm.limit >= memory else int(vm.limit)
    if reservation > memory:
        findings.warn(f"VM {vm.name}: reservation above its memory; taken as all of it")
        reservation = memory
    if limit is not None and limit < reservation:
        findings.warn(f"VM {vm.name}: limit below its reservation; taken as that")
        limit = reservation
    shares = vm.shares
    if math.isnan(shares) or shares <= 0:
        shares = SHARES_A_MIB * memory / _PAGES_A_MIB
    overhead = overhead_pages(memory) if math.isnan(vm.overhead) else vm.overhead
    settings = VmSettings(
        vm.name, memory, max(round(shares), 1), reservation, limit, vm.group or ""
    )
    return PlannedVm(
        settings, overhead, vm.host or "", vm.apart or "", vm.together or "",
        True if vm.driver is None else vm.driver,
    )  # fmt: skip


def overhead_pages(memory: float) -> float:
    """Machine memory a VM of ``memory`` pages takes beside its own, in pages.

    vSphere Resource Management (6.5), "Sample Overhead Memory on Virtual Machines", one virtual
    processor: 20.29 MiB for 256 MiB, 25.90 for 1 GiB, 48.64 for 4 GiB, 139.62 for 16 GiB; straight
    lines between and beyond.
    """
    sizes, overheads = (256.0, 1024.0, 4096.0, 16384.0), (20.29, 25.90, 48.64, 139.62)
    mib = memory / _PAGES_A_MIB
    if mib > sizes[-1]:
        slope = (overheads[-1] - overheads[-2]) / (sizes[-1] - sizes[-2])
        return (overheads[-1] + slope * (mib - sizes[-1])) * _PAGES_A_MIB
    return float(np.interp(mib, sizes, overheads)) * _PAGES_A_MIB
