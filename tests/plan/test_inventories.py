# SPDX-License-Identifier: Apache-2.0
"""RVTools exports as people have them: titles, sums, all tabs, clusters, hosts at rest."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from memvirt.plan.executor import InProcess
from memvirt.plan.findings import PlanDataError
from memvirt.plan.fleet import Fleet, assemble
from memvirt.plan.planner import answer
from memvirt.plan.question import Question
from memvirt.plan.readers.detect import read_files

MIB = 256  # pages
INFO = ["VM", "Powerstate", "Template", "SRM Placeholder", "CPUs", "Memory", "NICs",
        "In Use MiB", "Cluster", "Host", "VM ID", "VM UUID"]  # fmt: skip
MEMORY = ["VM", "Powerstate", "Template", "SRM Placeholder", "Size MiB", "Overhead", "Consumed",
          "Private", "Shared", "Swapped", "Ballooned", "Active", "Shares", "Reservation", "Limit",
          "Cluster", "Host", "VM ID", "VM UUID"]  # fmt: skip
HOST = ["Host", "Cluster", "in Maintenance Mode", "CPU Model", "# CPU", "# Memory"]


def vm(name: str, host: str, **more: Any) -> dict[str, Any]:
    return {
        "VM": name, "Powerstate": "poweredOn", "Template": "False", "SRM Placeholder": "False",
        "CPUs": 2, "Memory": 8192, "Size MiB": 8192, "NICs": 1, "Overhead": 64, "Consumed": 6100,
        "Private": 6000, "Shared": 0, "Swapped": 0, "Ballooned": 0, "Active": 800,
        "Shares": 81920, "Reservation": 0, "Limit": -1, "Cluster": host[:2], "Host": host,
        "VM ID": f"vm-{name}", "VM UUID": f"uuid-{name}",
    } | more  # fmt: skip


def host(name: str, mib: int = 20_480, resting: str = "False") -> dict[str, Any]:
    return {"Host": name, "Cluster": name[:2], "in Maintenance Mode": resting, "# Memory": mib}


VMS = [vm("web", "c1-a"), vm("app", "c1-a"), vm("db", "c1-b"), vm("mail", "c2-a")]
HOSTS = [host("c1-a"), host("c1-b"), host("c2-a"), host("c2-b", 65_536), host("c1-c", 20_480)]


def workbook(path: Path, *, title: bool = False, total: bool = False, hidden: bool = False) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, headings, rows in (
        ("vInfo", INFO, VMS), ("vMemory", MEMORY, VMS), ("vHost", HOST, HOSTS)
    ):  # fmt: skip
        sheet = book.create_sheet(name)
        if title:
            sheet.append(["Export of vcenter.example, 2024-05-01"])
            sheet.merge_cells("A1:F1")
            sheet.append([])
        sheet.append(headings)
        for row in rows:
            sheet.append([row.get(heading) for heading in headings])
        if total and name != "vHost":
            size = "Memory" if name == "vInfo" else "Size MiB"
            sheet.append([{"VM": "Total", size: 4 * 8192}.get(heading) for heading in headings])
        if hidden and name != "vInfo":
            sheet.sheet_state = "hidden"
    book.save(path)
    return path


def tab(path: Path, headings: list[str], rows: list[dict[str, Any]], separator: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, headings, delimiter=separator, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def fleet_of(path: Path, **options: Any) -> Fleet:
    return assemble(read_files([path]), **options)


def said(fleet: Fleet, *words: str) -> bool:
    return any(all(word in str(f) for word in words) for f in fleet.findings)


def asked(fleet: Fleet, question: Question) -> Any:
    return answer(fleet, question, InProcess(), lambda done, total: None)


@pytest.mark.parametrize("shape", ["title", "total", "hidden"])
def test_what_people_do_to_a_workbook(tmp_path: Path, shape: str) -> None:
    plain = fleet_of(workbook(tmp_path / "plain.xlsx"))
    changed = fleet_of(workbook(tmp_path / "other.xlsx", **{shape: True}))
    assert changed.vms == plain.vms
    assert changed.hosts == plain.hosts
    assert (changed.in_use == plain.in_use).all()
    assert said(changed, "rows above the headings") is (shape == "title")
    assert said(changed, "row 6 is a sum") is (shape == "total")


def test_a_workbook_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    path = workbook(tmp_path / "export.xlsx")
    assert fleet_of(path.rename(tmp_path / "export")).vms[0].name == "web"


def test_a_title_above_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "vms.csv"
    path.write_text("Capacity of May\n\nvm,memory_mib,in_use_mib\na,x,1\nb,4096,2048\n")
    fleet = fleet_of(path)
    assert [one.name for one in fleet.vms] == ["b"]
    assert said(fleet, "row 4", "x")  # as an editor counts lines


def test_a_sum_below_a_csv_but_not_a_vm_of_that_name(tmp_path: Path) -> None:
    path = tmp_path / "vms.csv"
    path.write_text("vm,memory_mib\na,4096\nb,4096\nTotal,8192\n")
    assert [one.name for one in fleet_of(path).vms] == ["a", "b"]
    path.write_text("vm,memory_mib\na,4096\nb,4096\nTotal,1024\n")
    assert [one.name for one in fleet_of(path).vms] == ["Total", "a", "b"]


def test_all_tabs_of_an_export_in_one_folder(tmp_path: Path) -> None:
    tab(tmp_path / "RVTools_tabvInfo.csv", INFO, VMS)
    tab(tmp_path / "RVTools_tabvMemory.csv", MEMORY, VMS)
    tab(tmp_path / "RVTools_tabvHost.csv", HOST, HOSTS)
    tab(tmp_path / "RVTools_tabvCPU.csv", ["VM", "Powerstate", "CPUs", "Sockets"], VMS)
    tab(tmp_path / "RVTools_tabvDatastore.csv", ["Name", "Capacity MiB", "VI SDK Server"], [{}])
    (tmp_path / "notes.txt").write_text("vcenter of May\n")
    fleet = fleet_of(tmp_path)
    assert len(fleet.vms) == 4
    assert fleet.in_use[0, 0] == 6100 * MIB
    for name in ("tabvCPU", "tabvDatastore"):
        assert said(fleet, "note", name, "nothing of memory")
    assert said(fleet, "warning", "notes.txt", "no measurement")


def test_a_folder_without_a_measurement(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("vcenter of May\n")
    with pytest.raises(PlanDataError, match="none of the formats"):
        fleet_of(tmp_path)


def test_limits_with_grouped_digits(tmp_path: Path) -> None:
    rows = [vm("web", "c1-a", Limit="4.096"), vm("app", "c1-a", Limit="-1")]
    tab(tmp_path / "RVTools_tabvMemory.csv", MEMORY, rows, ";")
    limits = {one.name: one.settings.limit for one in fleet_of(tmp_path).vms}
    assert limits == {"web": 4096 * MIB, "app": None}


def test_what_does_not_run_is_named(tmp_path: Path) -> None:
    rows = [
        *VMS, vm("golden", "c1-a", Template="WAHR"),
        vm("copy", "c1-a", **{"SRM Placeholder": "True", "Powerstate": "poweredOff"}),
    ]  # fmt: skip
    tab(tmp_path / "RVTools_tabvInfo.csv", INFO, rows)
    fleet = fleet_of(tmp_path)
    assert len(fleet.vms) == 4
    assert said(fleet, "templates", "golden")
    assert said(fleet, "Site Recovery", "copy")


def test_clusters(tmp_path: Path) -> None:
    path = workbook(tmp_path / "export.xlsx")
    assert said(fleet_of(path), "2 clusters", "--cluster")
    one = fleet_of(path, clusters=("c2",))
    assert [each.name for each in one.vms] == ["mail"]
    assert {each.name for each in one.hosts} == {"c2-a", "c2-b"}
    with pytest.raises(PlanDataError, match=r"no VM of cluster c3; there are c1, c2"):
        fleet_of(path, clusters=("c3",))


def test_vms_are_restarted_inside_their_cluster_on_idle_hosts_too(tmp_path: Path) -> None:
    tab(tmp_path / "RVTools_tabvMemory.csv", MEMORY, VMS)
    hosts = [host("c1-a"), host("c1-b", 14_336), host("c2-a"), host("c2-b", 65_536)]
    tab(tmp_path / "RVTools_tabvHost.csv", HOST, hosts)
    alone = asked(fleet_of(tmp_path), Question(failover=1)).failover
    assert alone is not None
    assert not alone.fits  # c2-b has room for the VMs of c1-a, but is of another cluster
    assert alone.worst_host == "c1-a"
    tab(tmp_path / "RVTools_tabvHost.csv", HOST, [*hosts, host("c1-c")])
    assert asked(fleet_of(tmp_path), Question(failover=1)).fits == 1


def test_a_host_in_maintenance_takes_nothing(tmp_path: Path) -> None:
    tab(tmp_path / "RVTools_tabvMemory.csv", MEMORY, [vm("web", "c1-a"), vm("app", "c1-a")])
    hosts = [host("c1-a"), host("c1-b", resting="True"), host("c1-d", 4096)]
    tab(tmp_path / "RVTools_tabvHost.csv", HOST, hosts)
    fleet = fleet_of(tmp_path)
    assert [each.name for each in fleet.hosts] == ["c1-a", "c1-d"]
    assert said(fleet, "maintenance", "c1-b")
    found = asked(fleet, Question(failover=1))
    assert found.failover is not None
    assert not found.failover.fits
    assert found.fits == 0
