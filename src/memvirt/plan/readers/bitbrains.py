# SPDX-License-Identifier: Apache-2.0
"""The Bitbrains traces (GWA-T-12 of the Grid Workloads Archive): one CSV for each VM.

Headings are parted by ";" and a tab; amounts are KB and mean KiB. The heading of the time says
milliseconds, the published files hold seconds: what the numbers must be is read from their size.
"Memory usage" is what the VM actively uses (Shen, van Beek, Iosup, CCGrid 2015): memory in use is
not in the traces, and stays unknown.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from memvirt.plan.findings import Findings
from memvirt.plan.readings import Reading

from .series import make_series, seconds_of
from .tables import normal, read_csv


def is_bitbrains(headings: list[str]) -> bool:
    """Whether headings are those of a Bitbrains trace."""
    names = {normal(heading) for heading in headings}
    return {"timestampms", "memorycapacityprovisionedkb"} <= names


def read_bitbrains(path: Path) -> Reading:
    """One VM, named as its file. Raises PlanDataError."""
    findings = Findings(path)
    table = read_csv(path, findings, is_bitbrains)
    # Numbers have a decimal point although ";" parts them.
    table.decimal_comma = False
    times = seconds_of(table.text(table.need(["Timestamp [ms]"], "time")), findings)
    capacity = np.array(
        table.pages(table.need(["Memory capacity provisioned [KB]"], "configured memory"))
    )
    active = np.array(table.pages(table.need(["Memory usage [KB]"], "memory usage")))
    name = path.stem
    on = capacity > 0
    if not on.any():
        raise findings.error("its VM never has memory")
    times = np.where(on, times, np.nan)
    vms = make_series([name] * times.size, times, np.full(times.size, np.nan), active, findings)
    sizes = np.unique(capacity[on])
    if sizes.size > 1:
        findings.note(f"VM {name}: memory changes {sizes.size - 1} times; the largest size counts")
    vm = vms[name]
    vm.memory = float(sizes[-1])
    return Reading(path, "Bitbrains", [vm], findings=findings.list)
