# SPDX-License-Identifier: Apache-2.0
"""The plain CSV of docs/plan.md: a row for each VM, or for each VM and time, columns in any order.

``vm`` and ``memory_UNIT`` are needed; ``time``, ``in_use_UNIT``, ``active_UNIT``,
``reservation_UNIT``, ``limit_UNIT``, ``overhead_UNIT``, ``shares``, ``group``, ``apart``,
``together``, ``host``, ``cluster``, ``power`` and ``balloon`` may be there. UNIT is bytes, kib,
mib, gib or tib, or stands in each cell. Other columns are named in a note and not used.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from memvirt.plan.findings import Findings, name_some
from memvirt.plan.readings import Reading, VmReading
from memvirt.plan.units import split_heading

from .series import make_series, seconds_of
from .tables import Table, is_total, normal, read_csv

_AMOUNTS = ("memory", "reservation", "limit", "overhead")
_WORDS = ("shares", "group", "apart", "together", "host", "cluster", "power", "balloon")
_KNOWN = {"vm", "time", "inuse", "active", *_AMOUNTS, *_WORDS}
_OFF = {"off", "poweredoff", "false", "0", "no", "suspended"}


def is_plain(headings: list[str]) -> bool:
    """Whether headings are those of a plain CSV."""
    names = {normal(split_heading(heading)[0]) for heading in headings}
    return {"vm", "memory"} <= names


def read_plain(path: Path) -> Reading:
    """Raises PlanDataError."""
    findings = Findings(path)
    table = read_csv(path, findings, is_plain)
    other = [h for h in table.headings if normal(split_heading(h)[0]) not in _KNOWN]
    if other:
        findings.note(f"columns that are not used: {name_some(other)}")
    names = table.text(table.need(["vm"], "the VM's name"))
    memory = np.array(table.pages(table.need(["memory"], "configured memory")))
    sums = [
        row for row, name in enumerate(names)
        if is_total(name) and memory[row] >= 0.99 * (np.nansum(memory) - memory[row])
    ]  # fmt: skip
    if sums:
        table = table.without(sums, "is a sum, no VM")
        names = table.text(table.find(["vm"]))
    nameless = [row + table.first for row, name in enumerate(names) if not name]
    if nameless:
        findings.warn(f"rows without a VM name, left out: {name_some([str(r) for r in nameless])}")
    time_column = table.find(["time"])
    in_use, active = (np.array(table.pages(table.find([n]))) for n in ("in_use", "active"))
    if time_column is None:
        times = np.zeros(table.rows)
        measured = bool(table.find(["in_use"]) or table.find(["active"]))
        seen: dict[str, int] = {}
        for row, name in enumerate(names):
            seen[name] = seen.get(name, 0) + 1
            if seen[name] > 1:
                names[row] = f"{name} ({seen[name]})"
        clones = [name for name, count in seen.items() if count > 1 and name]
        if clones:
            findings.warn(f"names that several VMs have, told apart by number: {name_some(clones)}")
    else:
        times, measured = seconds_of(table.text(time_column), findings), True
    times = np.where(np.array([bool(name) for name in names], bool), times, np.nan)
    vms = make_series(names, times, in_use, active, findings)
    _describe(table, names, vms, findings)
    for vm in vms.values():
        vm.moment = time_column is None
    if not measured:
        for vm in vms.values():
            vm.times, vm.in_use, vm.active = np.zeros(0), np.zeros(0), np.zeros(0)
    return Reading(path, "plain CSV", list(vms.values()), findings=findings.list)


def _describe(
    table: Table, names: list[str], vms: dict[str, VmReading], findings: Findings
) -> None:
    """What a VM is, from the last of its rows that says so."""
    amounts = {name: table.pages(table.find([name])) for name in _AMOUNTS}
    words = {name: table.text(table.find([name])) for name in _WORDS}
    shares = table.numbers(table.find(["shares"]))
    changed = set()
    for row, name in enumerate(names):
        vm = vms.get(name)
        if vm is None:
            continue
        for what, column in amounts.items():
            if math.isnan(column[row]):
                continue
            before = getattr(vm, what)
            if what == "memory" and not math.isnan(before) and before != column[row]:
                changed.add(name)
                setattr(vm, what, max(before, column[row]))
            else:
                setattr(vm, what, column[row])
        vm.shares = shares[row] if not math.isnan(shares[row]) else vm.shares
        vm.group = words["group"][row] or vm.group
        vm.apart = words["apart"][row] or vm.apart
        vm.together = words["together"][row] or vm.together
        vm.host = words["host"][row] or vm.host
        vm.cluster = words["cluster"][row] or vm.cluster
        if words["power"][row]:
            vm.powered_on = normal(words["power"][row]) not in _OFF
        if words["balloon"][row]:
            vm.driver = normal(words["balloon"][row]) not in _OFF
    if changed:
        findings.note(f"memory changes, the largest size counts: {name_some(sorted(changed))}")
