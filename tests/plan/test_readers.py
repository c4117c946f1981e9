# SPDX-License-Identifier: Apache-2.0
"""Readers against files that others' libraries have written: openpyxl, csv, json, pyarrow."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memvirt.observe.batch import BatchWriter
from memvirt.observe.record import Recorder
from memvirt.plan.findings import PlanDataError
from memvirt.plan.fleet import UNKNOWN, Fleet, assemble
from memvirt.plan.readers.detect import read_files
from tests.observe.samples import sample

MIB = 256  # pages


def fleet_of(*paths: Path) -> Fleet:
    return assemble(read_files(list(paths)))


def said(fleet: Fleet, *words: str) -> bool:
    return any(all(word in str(f) for word in words) for f in fleet.findings)


# RVTools --------------------------------------------------------------------------------------

INFO = ["VM", "Powerstate", "Template", "CPUs", "Memory", "In Use MiB", "Host", "VM UUID"]
NEW = ["VM", "Powerstate", "Size MiB", "Overhead", "Consumed", "Private", "Shared", "Swapped",
       "Ballooned", "Active", "Shares", "Reservation", "Limit", "VM UUID"]  # fmt: skip
OLD = [heading.replace("MiB", "MB") for heading in NEW[:-1] if heading not in ("Private", "Shared")]
ROW: dict[str, Any] = {
    "VM": "web", "Powerstate": "poweredOn", "Template": False, "CPUs": 2, "Memory": 8192,
    "In Use MiB": 500_000, "Host": "esx1", "VM UUID": "u1", "Size MiB": 8192, "Size MB": 8192,
    "Overhead": 80, "Consumed": 6000, "Private": 5800, "Shared": 400, "Swapped": 100,
    "Ballooned": 50, "Active": 900, "Shares": 81920, "Reservation": 1024, "Limit": -1,
}  # fmt: skip


def workbook(path: Path, **sheets: tuple[list[str], list[dict[str, Any]]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, (headings, rows) in sheets.items():
        sheet = book.create_sheet(name)
        sheet.append(headings)
        for row in rows:
            sheet.append([row.get(heading) for heading in headings])
    book.save(path)
    return path


@pytest.mark.parametrize("headings", [NEW, OLD])
def test_rvtools_workbook(tmp_path: Path, headings: list[str]) -> None:
    off = ROW | {"VM": "spare", "Powerstate": "poweredOff", "VM UUID": "u2"}
    template = ROW | {"VM": "golden", "Template": True, "VM UUID": "u3"}
    path = workbook(
        tmp_path / "export.xlsx",
        vInfo=(INFO, [ROW, off, template]),
        vMemory=(headings, [ROW, off]),
        vHost=(["Host", "# Memory"], [{"Host": "esx1", "# Memory": 131_072}]),
    )
    fleet = fleet_of(path)
    (vm,) = fleet.vms
    assert (vm.name, vm.host, vm.settings.memory) == ("web", "esx1", 8192 * MIB)
    assert (vm.settings.reservation, vm.settings.limit) == (1024 * MIB, None)
    assert (vm.settings.shares, vm.overhead) == (81920, 80 * MIB)
    backed = 6200 if headings is NEW else 6000  # old exports have consumed memory only
    assert fleet.in_use[0, 0] == (backed + 150) * MIB
    assert fleet.active[0, 0] == 900 * MIB
    assert fleet.hosts[0].memory == 131_072 * MIB
    assert said(fleet, "off", "spare")
    assert said(fleet, "templates", "golden")


@pytest.mark.parametrize("separator", [",", ";"])
def test_rvtools_csv_in_two_files(tmp_path: Path, separator: str) -> None:
    for name, headings in (("vInfo", INFO), ("vMemory", NEW)):
        with (tmp_path / f"RVTools_tab{name}.csv").open("w", newline="", encoding="utf-8-sig") as f:
            writer = csv.DictWriter(f, headings, delimiter=separator, extrasaction="ignore")
            writer.writeheader()
            grouped = "8,192" if separator == "," else "8.192"
            writer.writerow(ROW | {"Memory": grouped, "Size MiB": grouped})
    fleet = fleet_of(tmp_path)
    assert len(fleet.vms) == 1
    assert fleet.vms[0].settings.memory == 8192 * MIB
    assert fleet.in_use[0, 0] == 6350 * MIB


def test_clones_of_a_name_stay_apart(tmp_path: Path) -> None:
    clone = ROW | {"VM UUID": "u2", "Size MiB": 2048, "Memory": 2048}
    path = workbook(tmp_path / "a.xlsx", vInfo=(INFO, [ROW, clone]), vMemory=(NEW, [clone, ROW]))
    fleet = fleet_of(path)
    assert {vm.name: vm.settings.memory // MIB for vm in fleet.vms} == {
        "web": 8192,
        "web (2)": 2048,
    }
    assert said(fleet, "warning", "web")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(NEW), st.booleans())
def test_order_of_columns_does_not_matter(tmp_path: Path, headings: list[str], book: bool) -> None:
    if book:
        path = workbook(tmp_path / "p.xlsx", vMemory=(headings, [ROW]))
    else:
        path = tmp_path / "p.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, headings, extrasaction="ignore")
            writer.writeheader()
            writer.writerow(ROW)
    fleet = fleet_of(path)
    assert fleet.in_use[0, 0] == 6350 * MIB
    assert fleet.vms[0].settings.memory == 8192 * MIB


def test_rvtools_without_a_memory_column(tmp_path: Path) -> None:
    path = workbook(tmp_path / "bad.xlsx", vInfo=(["VM", "Powerstate"], [ROW]))
    with pytest.raises(
        PlanDataError, match=r"bad.xlsx, sheet vInfo: no column for configured memory"
    ):
        fleet_of(path)


def test_a_workbook_of_something_else(tmp_path: Path) -> None:
    path = workbook(tmp_path / "sales.xlsx", Revenue=(["Month"], []))
    with pytest.raises(PlanDataError, match=r"no sheet vInfo.*Revenue"):
        fleet_of(path)


# esxtop and our own files ------------------------------------------------------------------------


def test_esxtop_batch_of_our_own(tmp_path: Path) -> None:
    path = tmp_path / "batch.csv"
    with path.open("w") as file:
        writer = BatchWriter(file, "esx1", ["one", "late"], datetime(2024, 1, 1, tzinfo=UTC))
        for second in range(4):
            writer.write(sample(second * 10**9, names=("one",)))
        writer.write(sample(4 * 10**9, names=("one", "late")))
    fleet = fleet_of(path)
    assert [vm.name for vm in fleet.vms] == ["one", "late"]
    assert fleet.interval == 1
    assert fleet.in_use[0].tolist() == [8192 + 256] * 5  # granted and swapped
    assert np.isnan(fleet.in_use[1, :4]).all()  # off until the last sample
    assert fleet.hosts[0].memory == 25_600


def test_esxtop_of_esxi_with_a_torn_last_line(tmp_path: Path) -> None:
    def at(name: str, counter: str) -> str:
        return f"\\\\esx1\\Group Memory({name})\\{counter}"

    counters = (
        "Memory Size MBytes",
        "Memory Granted Size MBytes",
        "Touched MBytes",
        "Memctl MBytes",
    )
    heads = ["(PDH-CSV 4.0) (UTC)(0)", "\\\\esx1\\Memory\\Machine MBytes",
             "\\\\esx1\\Physical Cpu(0)\\% Util Time"]  # fmt: skip
    heads += [at(vm, c) for vm in ("19:db", "20:db", "7:vmkernel") for c in counters]
    path = tmp_path / "esxtop.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(heads)
        for minute in (0, 5):
            row = [f"07/13/2023 18:{minute:02}:05", "65536", "3", "4096", "3000", "700", "64"]
            writer.writerow([*row, "2048", "1000", "100", "0", "", "", "", ""])
        file.write('"07/13/20')
    fleet = fleet_of(path)
    assert [vm.name for vm in fleet.vms] == ["db (esx1:19)", "db (esx1:20)"]
    assert fleet.in_use[:, 0].tolist() == [3064 * MIB, 1000 * MIB]
    assert fleet.interval == 300
    assert said(fleet, "kept apart")
    assert said(fleet, "without a time")
    assert said(fleet, "vmkernel", "left out")


def test_our_own_record(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    with Recorder(path, scenario="", name="lab", version="0") as recorder:
        for second in range(3):
            recorder.add(sample(second * 10**9))
    fleet = fleet_of(path)
    assert [vm.name for vm in fleet.vms] == ["one", "two"]
    assert fleet.in_use[0].tolist() == [8192 + 256] * 3
    assert fleet.vms[0].host == "lab"
    assert fleet.hosts[0].memory == 25_600


# Prometheus --------------------------------------------------------------------------------------


def matrix(metric: str, values: list[float], **labels: str) -> dict[str, Any]:
    points = [[1_700_000_000 + 60 * i, str(value)] for i, value in enumerate(values)]
    return {"metric": {"__name__": metric, **labels}, "values": points}


def prometheus(path: Path, *series: dict[str, Any]) -> Path:
    path.write_text(
        json.dumps({"status": "success", "data": {"resultType": "matrix", "result": list(series)}})
    )
    return path


GIB = 2.0**30


def test_prometheus_libvirt_one_metric_a_file(tmp_path: Path) -> None:
    stats = "libvirt_domain_memory_stats_"
    prometheus(
        tmp_path / "a.json",
        matrix("libvirt_domain_info_maximum_memory_bytes", [4 * GIB] * 3, domain="db"),
    )
    prometheus(
        tmp_path / "b.json", matrix(stats + "rss_bytes", [2 * GIB, 3 * GIB, 3 * GIB], domain="db")
    )
    prometheus(tmp_path / "c.json", matrix(stats + "available_bytes", [4 * GIB] * 3, domain="db"))
    prometheus(tmp_path / "d.json", matrix(stats + "usable_bytes", [3 * GIB] * 3, domain="db"))
    fleet = fleet_of(tmp_path)
    assert [vm.name for vm in fleet.vms] == ["db"]
    assert (fleet.in_use[0] / 256 / 1024).tolist() == [2, 3, 3]
    assert (fleet.active[0] / 256 / 1024).tolist() == [1, 1, 1]
    assert fleet.interval == 60


def test_prometheus_kubevirt_and_node_exporter(tmp_path: Path) -> None:
    path = prometheus(
        tmp_path / "q.json",
        matrix("kubevirt_vmi_memory_domain_bytes", [2 * GIB] * 2, namespace="a", name="vm"),
        matrix("kubevirt_vmi_memory_resident_bytes", [GIB] * 2, namespace="a", name="vm"),
        matrix("kubevirt_vmi_memory_domain_bytes", [GIB] * 2, namespace="b", name="vm"),
        matrix("node_memory_MemTotal_bytes", [8 * GIB] * 2, instance="10.0.0.7:9100"),
        matrix("node_memory_MemFree_bytes", [6 * GIB] * 2, instance="10.0.0.7:9100"),
        matrix("node_memory_Active_bytes", [GIB] * 2, instance="10.0.0.7:9100"),
        matrix("up", [1, 1], instance="10.0.0.7:9100"),
    )
    fleet = fleet_of(path)
    by_name = {vm.name: row for row, vm in enumerate(fleet.vms)}
    assert set(by_name) == {"a/vm", "b/vm", "10.0.0.7"}
    assert fleet.in_use[by_name["a/vm"], 0] == 1024 * MIB
    assert fleet.active[by_name["a/vm"], 0] == UNKNOWN
    assert fleet.in_use[by_name["10.0.0.7"], 0] == 2048 * MIB
    assert fleet.active[by_name["10.0.0.7"], 0] == 1024 * MIB
    assert said(fleet, "up")


@pytest.mark.parametrize("shape", ["columns", "struct", "map"])
def test_prometheus_parquet(tmp_path: Path, shape: str) -> None:
    rows = [("node_memory_MemTotal_bytes", 8 * GIB), ("node_memory_MemFree_bytes", 2 * GIB)]
    names = [name for name, _ in rows for _ in range(2)]
    labels = [{"__name__": name, "instance": "vm1:9100"} for name in names]
    table: dict[str, Any] = {
        "timestamp": pa.array([1_700_000_000_000, 1_700_000_060_000] * 2, pa.timestamp("ms")),
        "value": [value for _, value in rows for _ in range(2)],
    }
    if shape == "columns":
        table |= {"metric": names, "instance": ["vm1:9100"] * 4}
    elif shape == "struct":
        table["labels"] = pa.array(labels)
    else:
        table["labels"] = pa.array(
            [list(d.items()) for d in labels], pa.map_(pa.string(), pa.string())
        )
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table(table), path)
    fleet = fleet_of(path)
    assert fleet.vms[0].name == "vm1"
    assert fleet.in_use[0].tolist() == [6 * 1024 * MIB] * 2
    assert (fleet.start, fleet.interval) == (1_700_000_000, 60)


def test_an_error_of_prometheus(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text('{"status": "error", "error": "query timed out", "data": {}}')
    with pytest.raises(PlanDataError, match="query timed out"):
        fleet_of(path)


# Bitbrains and plain CSV -------------------------------------------------------------------------


def test_bitbrains(tmp_path: Path) -> None:
    heads = ["Timestamp [ms]", "CPU cores", "CPU usage [%]", "Memory capacity provisioned [KB]",
             "Memory usage [KB]"]  # fmt: skip
    for number in (1, 2):
        lines = [";\t".join(heads)]
        for step in range(3):
            usage = 100_000.5 * number + step
            lines.append(f"{1_376_314_846 + 300 * step};\t4;\t93.2;\t6.7108864E7;\t{usage}")
        (tmp_path / f"{number}.csv").write_text("\n".join(lines) + "\n")
    fleet = fleet_of(tmp_path)
    assert [vm.name for vm in fleet.vms] == ["1", "2"]
    assert fleet.vms[0].settings.memory == 64 * 1024 * MIB
    assert fleet.interval == 300
    assert fleet.start == 1_376_314_846
    assert (fleet.in_use == UNKNOWN).all()
    assert fleet.active[1, 0] == pytest.approx(200_001 / 4, rel=1e-6)


UNITS = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "bytes": 1}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.permutations(["vm", "time", "memory", "in_use", "active", "shares"]),
    st.lists(st.sampled_from(sorted(UNITS)), min_size=3, max_size=3),
    st.sampled_from(",;\t"),
    st.randoms(use_true_random=False),
)
def test_plain_csv_in_any_unit_and_order(
    tmp_path: Path, columns: list[str], units: list[str], separator: str, random: Any
) -> None:
    unit = dict(zip(("memory", "in_use", "active"), units, strict=True))
    heads = [f"{name}_{unit[name]}" if name in unit else name for name in columns]
    gib = {"memory": 8, "in_use": 4, "active": 1}
    rows = []
    for vm in ("a", "b"):
        for step in range(3):
            row: dict[str, Any] = {"vm": vm, "time": 1_700_000_000 + 60 * step, "shares": 77}
            row |= {n: gib[n] * 2**30 // UNITS[unit[n]] for n in gib}
            rows.append([str(row[name]) for name in columns])
    random.shuffle(rows)
    path = tmp_path / "plain.csv"
    path.write_text("\n".join(separator.join(row) for row in [heads, *rows]) + "\n")
    fleet = fleet_of(path)
    assert [vm.name for vm in fleet.vms] == ["a", "b"]
    assert all(
        vm.settings.memory == 8 * 1024 * MIB and vm.settings.shares == 77 for vm in fleet.vms
    )
    assert (fleet.in_use == 4 * 1024 * MIB).all()
    assert (fleet.active == 1024 * MIB).all()
    assert not fleet.findings


def test_what_is_wrong_in_a_plain_csv_is_said(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text(
        "vm,time,memory_mib,in_use_mib,active_mib,colour\n"
        "a,2024-01-01T00:00,4096,1000,9999,red\n"
        "a,2024-01-01T00:05,4096,lots,100,red\n"
        "a,someday,4096,1000,100,red\n"
        ",2024-01-01T00:05,4096,1000,100,red\n"
        "b,2024-01-01T00:00,8 GB,1000,100,red\n"
        "b,2024-01-01T00:00,8 GB,1200,100,red\n"
        "c,2024-01-01T00:00,4,1,1,red\n"
    )
    fleet = fleet_of(path)
    for words in (
        ("colour",), ("lots",), ("someday",), ("without a VM name",), ("mixes units",),
        ("repeat", "b"), ("VM c", "unit"), ("VM a", "9999"),
    ):  # fmt: skip
        assert said(fleet, *words), words
    assert fleet.in_use[1, 0] == 1200 * MIB


def test_a_memory_column_without_a_unit(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text("vm,memory\na,4096\n")
    with pytest.raises(PlanDataError, match="no VM that is on and has a memory size"):
        fleet_of(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b"\x00\x01\x02", b"a,b\n1,2\n", b"{}", b"PAR1xx"]
)
def test_files_of_nothing_known(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "thing"
    path.write_bytes(content)
    with pytest.raises(PlanDataError, match="thing"):
        fleet_of(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanDataError, match=r"nowhere\.csv: No such file"):
        fleet_of(tmp_path / "nowhere.csv")


def test_a_gap_means_off_and_a_short_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    minutes = [0, 1, 2, 4, 5, 30, 31]
    rows = [f"a,{1_700_000_000 + 60 * m},1024,512,100" for m in minutes]
    path.write_text("vm,time,memory_mib,in_use_mib,active_mib\n" + "\n".join(rows) + "\n")
    on = fleet_of(path).on()[0]
    assert on[:6].all()
    assert not on[10:30].any()
    assert on[30:].all()
