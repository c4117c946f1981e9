# SPDX-License-Identifier: Apache-2.0
"""Our own records (``memvirt run --record``): what the VMkernel knew of each VM at each sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from memvirt.observe.record import RecordError, read_host_record
from memvirt.plan.findings import Findings
from memvirt.plan.readings import HostReading, Reading

from .series import make_series


def read_own_record(path: Path) -> Reading:
    """VMs and host of a record. Raises PlanDataError."""
    findings = Findings(path)
    try:
        columns, about = read_host_record(path)
    except RecordError as error:
        raise findings.error(str(error).removeprefix(f"{path}: ")) from error
    on = columns["condition"] != "off"
    rows = {name: column[on] for name, column in columns.items()}
    if not rows["name"].size:
        raise findings.error("holds no sample of a VM that is on")
    in_use = sum(
        rows[what].astype(np.float64) for what in ("granted", "balloon", "swapped", "zipped")
    )
    # What the record keeps is virtual time; a host's series starts at its start.
    vms = make_series(
        rows["name"], rows["host_time_ns"] / 1e9, np.asarray(in_use),
        rows["active_percent"] / 100 * rows["memory"], findings,
    )  # fmt: skip
    last: dict[str, int] = {str(name): row for row, name in enumerate(rows["name"])}
    for name, vm in vms.items():
        _describe(vm, rows, last[name])
        own = rows["name"] == name
        vm.driver = bool(np.any(rows["balloon_driver"][own]))
        # With plenty of memory a VM keeps a large reserve of frames, which it would give back.
        overhead = rows["overhead"][own]
        vm.overhead = float(overhead[overhead.size // 2 :].min())
    host = HostReading(str(about.get("name", path.stem)), float(columns["host_total"][-1]))
    for vm in vms.values():
        vm.host = host.name
    return Reading(path, "memvirt record", list(vms.values()), [host], findings.list)


def _describe(vm: Any, rows: dict[str, Any], row: int) -> None:
    vm.memory = float(rows["memory"][row])
    vm.reservation = float(rows["entitled_min"][row])
    limit = float(rows["entitled_max"][row])
    vm.limit = limit if limit < vm.memory else float("nan")
    vm.shares = float(rows["shares"][row])
    vm.group = str(rows["group"][row]) or None
