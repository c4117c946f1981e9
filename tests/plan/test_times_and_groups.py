# SPDX-License-Identifier: Apache-2.0
"""Times as people write them, and what is a VM among esxtop's groups."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from memvirt.plan.findings import PlanDataError
from tests.plan.test_readers import MIB, fleet_of, said


def test_esxtop_of_esxi_8_its_processes_and_managed_memory(tmp_path: Path) -> None:
    counters = ("Memory Size MBytes", "Memory Granted Size MBytes", "Touched MBytes", "Shares")
    heads = ["(PDH-CSV 4.0) (UTC)(0)", "\\\\esx1\\Memory\\Machine MBytes",
             "\\\\esx1\\Memory\\Kernel Managed MBytes"]  # fmt: skip
    groups = ("101:web,1 (prod)", "2099014:hostd.2099014", "9:helper")
    heads += [f"\\\\esx1\\Group Memory({g})\\{c}" for g in groups for c in counters]
    path = tmp_path / "esxtop.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(heads)
        for minute in (0, 5):
            row = [f"03/31/2024 02:{minute:02}:00", "130946", "126000", "8192", "6000", "900", "-3"]
            writer.writerow([*row, "300", "90", "50", "1000", "0", "0", "0", "0"])
    fleet = fleet_of(path)
    (vm,) = fleet.vms
    assert vm.name == "web,1 (prod)"
    assert vm.settings.shares == 81920  # -3 is "normal"
    assert fleet.hosts[0].memory == 126_000 * MIB
    assert said(fleet, "note", "hostd.2099014", "no VMs")
    assert said(fleet, "helper", "left out")


def test_times_of_other_habits(tmp_path: Path) -> None:
    path = tmp_path / "dates.csv"
    path.write_text("vm;memory_gb;time;in_use_gb\n" + "".join(
        f"a;8;27.10.2024 0{hour}:00;4,5\n" for hour in range(4)))  # fmt: skip
    fleet = fleet_of(path)
    assert fleet.points == 4
    assert fleet.in_use[0, 0] == 4.5 * 1024 * MIB
    summer, winter = "+02:00", "+01:00"  # the hour of 02 comes twice
    path.write_text("vm,memory_gb,time,in_use_gb\n" + "".join(
        f"a,8,2024-10-27T{when},4\n"
        for when in (f"01:30:00{summer}", f"02:00:00{summer}", f"02:30:00{summer}",
                     f"02:00:00{winter}", f"02:30:00{winter}")))  # fmt: skip
    assert (fleet_of(path).points, fleet_of(path).interval) == (5, 1800)
    path.write_text("vm,memory_gb,time,in_use_gb\na,8,10/11/2024 01:00,4\n")
    with pytest.raises(PlanDataError, match=r'no row has a usable time .*"10/11/2024 01:00"'):
        fleet_of(path)
