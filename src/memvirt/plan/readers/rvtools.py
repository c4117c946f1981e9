# SPDX-License-Identifier: Apache-2.0
"""RVTools exports: the sheets vInfo, vMemory and vHost of a workbook, or one CSV for each tab.

The other tabs of an export by CSV say nothing of memory: a note names them.

Headings as versions 3.x to 4.x write them: "Size MB" became "Size MiB", and "Memory" of vInfo never
had a unit (it is MiB). "In Use MiB" of vInfo is disk space, not memory, and is not read. An export
is one moment: the VMs get a series of one point.

Memory in use is what the host backs or has reclaimed: private, shared, ballooned and swapped
memory; where private and shared are missing (they are in old exports), consumed takes their place.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from memvirt.plan.findings import Findings, name_some
from memvirt.plan.readings import Floats, HostReading, Reading, VmReading

from .tables import Table, is_total, normal, read_csv, read_sheets

_MIB = 1 << 20
_IDENTITIES = (("VM UUID", "UUID"), ("VM ID",))
_SHEETS = ("vInfo", "vMemory", "vHost")
_ON = {"poweredon", "on", "running"}
# Spreadsheet programs write truth in the language of their user.
_TRUE = {"true", "yes", "1", "wahr", "vrai", "verdadero", "vero", "waar", "prawda", "sim"}
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # xlsx, xls


def is_rvtools(headings: list[str]) -> bool:
    """Whether headings are those of one of RVTools' tabs."""
    names = {normal(heading) for heading in headings}
    return {"vm", "powerstate"} <= names or bool({"#memory", "visdkserver"} & names)


def read_rvtools(path: Path) -> Reading:
    """A workbook, or the CSV of one tab. Raises PlanDataError."""
    findings = Findings(path)
    with path.open("rb") as file:
        book = file.read(4) in _WORKBOOKS
    if book:
        tables = read_sheets(path, findings, _SHEETS, _is_tab)
    else:
        table = read_csv(path, findings, is_rvtools)
        tab = _tab(table)
        if tab is None:
            findings.note("is a tab of RVTools that says nothing of memory; not read")
            return Reading(path, "RVTools", [], findings=findings.list)
        tables = {tab: table}
    vms: dict[str, VmReading] = {}
    sheets = [tables[sheet] for sheet in ("vInfo", "vMemory") if sheet in tables]
    identity = next((names for names in _IDENTITIES if _identifies(names, sheets)), None)
    for sheet in sheets:
        _read_vms(_without_sums(sheet), identity, vms, findings)
    hosts = _read_hosts(tables["vHost"], findings) if "vHost" in tables else []
    return Reading(path, "RVTools", list(vms.values()), hosts, findings.list)


def _is_tab(row: list[str]) -> bool:
    """Whether a row of a sheet holds headings: a title has no cells beside it."""
    return bool({"vm", "name", "host"} & {normal(cell) for cell in row}) and sum(map(bool, row)) > 1


def _tab(table: Table) -> str | None:
    if table.find(["# Memory"]) is not None:
        return "vHost"
    if table.find(["Ballooned"]) is not None or table.find(["Size"]) is not None:
        return "vMemory"
    # Nearly every tab has VMs; of vInfo the size of their memory is known.
    return "vInfo" if table.find(["Memory"]) or table.find(["NICs"]) else None


def _without_sums(table: Table) -> Table:
    names = table.text(table.find(["VM", "Name"]))
    power = table.text(table.find(["Powerstate", "Power State"]))
    sums = [row for row, name in enumerate(names) if is_total(name) and not power[row]]
    return table.without(sums, "is a sum, no VM")


def _identifies(names: tuple[str, ...], sheets: list[Table]) -> bool:
    """Whether a column tells the VMs of all sheets apart."""
    for sheet in sheets:
        heading = sheet.find(names)
        cells = sheet.text(heading)
        if heading is None or not all(cells) or len(set(cells)) < len(cells):
            return False
    return True


def _keys(table: Table, identity: tuple[str, ...] | None) -> list[str]:
    """One key for each row: its VM's identity, so that clones of a name stay apart."""
    if identity is not None:
        return table.text(table.find(identity))
    # Without identities the n-th row of a name is the n-th VM of that name, in every sheet.
    seen: dict[str, int] = {}
    keys = []
    for name in table.text(table.find(["VM"])):
        seen[name] = seen.get(name, 0) + 1
        keys.append(f"{name}\0{seen[name]}")
    return keys


def _read_vms(
    table: Table, identity: tuple[str, ...] | None, vms: dict[str, VmReading], findings: Findings
) -> None:
    names = table.text(table.need(["VM", "Name"], "the VM's name"))
    memory = table.pages(table.need(["Size", "Memory", "Memory Size"], "configured memory"), _MIB)
    power = table.text(table.find(["Powerstate", "Power State"]))
    template = table.text(table.find(["Template"]))
    placeholder = table.text(table.find(["SRM Placeholder"]))
    cluster = table.text(table.find(["Cluster"]))
    column = {
        name: table.pages(table.find(headings), _MIB)
        for name, headings in {
            "consumed": ["Consumed"], "private": ["Private"], "shared": ["Shared"],
            "swapped": ["Swapped"], "ballooned": ["Ballooned", "Balloon"],
            "active": ["Active", "Active Memory"], "reservation": ["Reservation"],
            "overhead": ["Consumed Overhead", "Overhead"],
        }.items()
    }  # fmt: skip
    # A limit of -1 is none; it is in MiB, whatever the heading says.
    limit = [pages if pages >= 0 else math.nan for pages in _limits(table)]
    shares = table.numbers(table.find(["Shares"]))
    host = table.text(table.find(["Host"]))
    templates, placeholders = [], []
    for row, key in enumerate(_keys(table, identity)):
        if not names[row]:
            findings.warn(f"row {row + table.first} has no VM name; left out", table.where)
            continue
        if template[row].lower() in _TRUE:
            templates.append(names[row])
            continue
        if placeholder[row].lower() in _TRUE:
            placeholders.append(names[row])
            continue
        vm = vms.setdefault(key, VmReading(names[row]))
        if not math.isnan(memory[row]):
            if not math.isnan(vm.memory) and abs(vm.memory - memory[row]) > 1:
                findings.warn(
                    f"VM {vm.name}: vInfo and vMemory differ in memory; the latter counts"
                )
            vm.memory = memory[row]
        if power[row]:
            vm.powered_on = normal(power[row]) in _ON
        vm.host, vm.cluster = host[row] or vm.host, cluster[row] or vm.cluster
        for name in ("reservation", "overhead"):
            if not math.isnan(column[name][row]):
                setattr(vm, name, column[name][row])
        vm.limit = limit[row] if not math.isnan(limit[row]) else vm.limit
        vm.shares = shares[row] if not math.isnan(shares[row]) else vm.shares
        in_use, active = _in_use({n: column[n][row] for n in column}), column["active"][row]
        if vm.powered_on and not (math.isnan(in_use) and math.isnan(active)):
            vm.times, vm.moment = np.zeros(1), True
            vm.in_use = np.array([in_use if not math.isnan(in_use) else _last(vm.in_use)])
            vm.active = np.array([active if not math.isnan(active) else _last(vm.active)])
    if templates:
        findings.note(f"templates are no VMs that run: {name_some(templates)}", table.where)
    if placeholders:
        findings.note(
            f"placeholders of Site Recovery Manager are no VMs that run: {name_some(placeholders)}",
            table.where,
        )


def _last(series: Floats) -> float:
    return float(series[-1]) if series.size else math.nan


def _limits(table: Table) -> list[float]:
    """Limits in pages; below 0 and NaN where there is none."""
    return [mib * 256 for mib in table.numbers(table.find(["Limit"]))]


def _in_use(row: dict[str, float]) -> float:
    """Memory in use as far as a row tells; NaN if it says nothing of it."""
    backed = row["private"] + row["shared"]  # NaN if either is missing
    if math.isnan(backed) or backed < row["consumed"] - row["shared"]:
        backed = row["consumed"]
    if math.isnan(backed):
        return math.nan
    reclaimed = [row[name] for name in ("swapped", "ballooned")]
    return backed + sum(pages for pages in reclaimed if not math.isnan(pages))


def _read_hosts(table: Table, findings: Findings) -> list[HostReading]:
    names = table.text(table.need(["Host"], "the host's name"))
    memory = table.pages(table.need(["# Memory", "Memory"], "the host's memory"), _MIB)
    cluster = table.text(table.find(["Cluster"]))
    maintenance = table.text(table.find(["in Maintenance Mode", "Maintenance Mode"]))
    hosts, resting = [], []
    for row, (name, pages) in enumerate(zip(names, memory, strict=True)):
        if not name or is_total(name):
            continue
        if maintenance[row].lower() in _TRUE:
            resting.append(name)
        elif math.isnan(pages):
            findings.warn(f"host {name} has no memory size; left out", table.where)
        else:
            hosts.append(HostReading(name, pages, cluster[row]))
    if resting:
        findings.note(f"hosts in maintenance mode take no VMs: {name_some(resting)}", table.where)
    if hosts:
        findings.note(
            "memory of hosts is what is built in; what ESXi itself takes is not in an export "
            "(leave it out by --what-if memory=-8G)", table.where,
        )  # fmt: skip
    return hosts
