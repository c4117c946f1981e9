# SPDX-License-Identifier: Apache-2.0
"""esxtop's batch output (``esxtop -b -a``), ESXi's or that of ``memvirt run --batch``.

CSV of many thousand columns, each headed by a counter path,
``\\\\host\\Group Memory(id:VM)\\Counter``, with the unit in its name (MBytes, which are MiB).
Only the memory counters are read. Memory in use is what is granted with what is ballooned, swapped
and compressed. Worlds of the VMkernel itself are groups too: a group without a memory size is none
of a VM, nor is one named as ESXi names its processes, by program and number.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from memvirt.plan.findings import Findings, name_some
from memvirt.plan.readings import Floats, HostReading, Reading, VmReading

from .tables import first_row

_PAGES = 256  # a MiB
_GROUP = re.compile(
    r"^\\\\(?P<host>[^\\]+)\\Group Memory\((?P<id>\d+):(?P<name>.*)\)\\(?P<counter>[^\\]+)$"
)
_HOST = re.compile(r"^\\\\(?P<host>[^\\]+)\\Memory\\(?P<counter>[^\\]+)$")
_COUNTERS = {
    "Memory Size MBytes": "memory",
    "Memory Granted Size MBytes": "granted",
    "Memory Consumed Size MBytes": "consumed",
    "Touched MBytes": "touched",
    "Memctl MBytes": "balloon",
    "Swapped MBytes": "swapped",
    "Compressed Memory MBytes": "zipped",
    "Overhead MBytes": "overhead",
    "Min MBytes": "reservation",
    "Max MBytes": "limit",
    "Shares": "shares",
    "Memory Shares": "shares",
}
_PROCESS = re.compile(r"[A-Za-z_-]+\.\d{5,}")  # hostd.2099014
_TIME_FORMATS = ("%m/%d/%Y %H:%M:%S.%f", "%m/%d/%Y %H:%M:%S")


def is_esxtop(headings: list[str]) -> bool:
    """Whether a CSV's headings are counter paths."""
    return bool(headings) and headings[0].startswith("(PDH-CSV")


def read_esxtop(path: Path) -> Reading:
    """The VMs and the host of a batch file. Raises PlanDataError."""
    findings = Findings(path)
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        headings, _ = first_row(file.readline())
    chosen: dict[tuple[str, str, str], dict[str, int]] = {}
    hosts: dict[str, int] = {}
    exact: list[int] = []
    for column, heading in enumerate(headings):
        group, host = _GROUP.match(heading), _HOST.match(heading)
        if group is not None and group["counter"] in _COUNTERS:
            key = (group["host"], group["name"], group["id"])
            chosen.setdefault(key, {})[_COUNTERS[group["counter"]]] = column
        elif host is not None and host["counter"] == "Machine MBytes":
            hosts.setdefault(host["host"], column)
        elif host is not None and host["counter"] == "Kernel Managed MBytes":
            hosts[host["host"]] = column  # without what the VMkernel keeps for itself
        elif host is not None and host["counter"] == "Sample Time Seconds":  # memvirt's own
            exact.append(column)
    vm_keys = [key for key, columns in chosen.items() if "memory" in columns]
    if not vm_keys:
        raise findings.error(
            "has no column \\\\HOST\\Group Memory(ID:VM)\\Memory Size MBytes; "
            "export with memory counters (esxtop -b -a)"
        )
    of_vms = {column for key in vm_keys for column in chosen[key].values()}
    wanted = sorted({0, *exact, *hosts.values(), *of_vms})
    frame = _columns(path, wanted, findings)
    times, kept = _times(frame[:, 0].str.strip_chars(' "').to_list(), findings)
    place = {column: position for position, column in enumerate(wanted)}

    def values(column: int) -> Floats:
        text = frame[:, place[column]].str.strip_chars(' "\r')
        return text.cast(pl.Float64, strict=False).to_numpy().astype(np.float64)[kept] * _PAGES

    if len(exact) == 1:
        seconds = values(exact[0]) / _PAGES
        if np.isfinite(seconds).all():
            times = times[0] + (seconds - seconds[0])
    names = Counter(name for _, name, _ in vm_keys)
    vms, never, processes = [], [], []
    for host_name, name, number in vm_keys:
        if _PROCESS.fullmatch(name):
            processes.append(name)
            continue
        columns = {what: values(at) for what, at in chosen[host_name, name, number].items()}
        # Two VMs of one name on a host, or one that was powered off and on again: both stay.
        shown = name if names[name] == 1 else f"{name} ({host_name}:{number})"
        vm = _vm(shown, host_name, times, columns)
        if vm is None:
            never.append(shown)
        else:
            vms.append(vm)
    if never:
        findings.warn(f"groups that never have memory, left out: {name_some(never)}")
    if processes:
        findings.note(f"processes of ESXi, by their names, no VMs: {name_some(processes)}")
    twice = [name for name, times_seen in names.items() if times_seen > 1]
    if twice:
        findings.note(f"names that several groups have, kept apart by id: {name_some(twice)}")
    found = [HostReading(name, float(np.nanmax(values(column)))) for name, column in hosts.items()]
    return Reading(path, "esxtop", vms, found, findings.list)


def _columns(path: Path, wanted: list[int], findings: Findings) -> pl.DataFrame:
    try:
        return pl.read_csv(
            path, has_header=False, skip_rows=1, columns=wanted, infer_schema=False,
            quote_char=None, encoding="utf8-lossy", truncate_ragged_lines=True,
        )  # fmt: skip
    except pl.exceptions.NoDataError:
        raise findings.error("has headings but no samples") from None
    except pl.exceptions.PolarsError as error:
        raise findings.error(f"is no CSV ({str(error).splitlines()[0]})") from error


def _times(cells: list[str | None], findings: Findings) -> tuple[Floats, Any]:
    """Seconds since 1970, rising, and the rows they are of."""
    times = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        for form in _TIME_FORMATS:
            try:
                times[row] = (
                    datetime.strptime((cell or "").strip(), form).replace(tzinfo=UTC).timestamp()
                )
                break
            except ValueError:
                continue
    bad = int(np.isnan(times).sum())
    if bad == times.size:
        raise findings.error("has no row with a time such as 07/13/2012 18:40:00")
    if bad:
        findings.warn(f"{bad} rows without a time (cut off, or headings again); left out")
    rows = np.flatnonzero(~np.isnan(times))
    rows = rows[np.argsort(times[rows], kind="stable")]
    return times[rows], rows


def _vm(name: str, host: str, times: Floats, columns: dict[str, Floats]) -> VmReading | None:
    there = ~np.isnan(columns["memory"]) & (columns["memory"] > 0)
    if not there.any():
        return None
    empty = np.full(times.size, np.nan)
    backed = columns.get("granted", columns.get("consumed", empty))
    gone = sum(
        np.nan_to_num(columns[what]) for what in ("balloon", "swapped", "zipped") if what in columns
    )
    reservation, limit = columns.get("reservation", empty), columns.get("limit", empty)
    return VmReading(
        name,
        memory=float(np.nanmax(columns["memory"])),
        reservation=_last(reservation[there]),
        limit=max(_last(limit[there]), -1.0) if _last(limit[there]) >= 0 else float("nan"),
        shares=_last(columns["shares"][there]) / _PAGES if "shares" in columns else float("nan"),
        overhead=_last(columns.get("overhead", empty)[there]),
        host=host,
        driver=bool(np.nanmax(columns["balloon"][there]) > 0) or None
        if "balloon" in columns
        else None,
        times=times[there],
        in_use=np.asarray(backed + gone)[there],
        active=columns.get("touched", empty)[there],
    )


def _last(series: Floats) -> float:
    known = series[~np.isnan(series)]
    return float(known[-1]) if known.size else float("nan")
