# SPDX-License-Identifier: Apache-2.0
"""Prometheus over weeks: VMs that move, that share a name, hosts' own exporters, gaps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from memvirt.plan.fleet import UNKNOWN, Fleet, assemble
from memvirt.plan.readers.detect import read_files

MIB = 256  # pages
GIB = 2.0**30
START = 1_700_000_000
STEP = 300


def series(metric: str, values: list[float | None], first: int = 0, **labels: str) -> Any:
    """Points of one series, as the HTTP API writes them; None: no sample."""
    points = [
        [START + STEP * (first + number), f"{value!r}"]
        for number, value in enumerate(values)
        if value is not None
    ]
    return {"metric": {"__name__": metric, **labels}, "values": points}


def fleet_of(path: Path, *results: Any) -> Fleet:
    answer = {"status": "success", "data": {"resultType": "matrix", "result": results}}
    path.write_text(json.dumps(answer))
    return assemble(read_files([path]))


def domain(name: str, host: str, used: list[float | None], first: int = 0) -> list[Any]:
    labels = {"domain": name, "instance": f"{host}:9177", "job": "libvirt"}
    return [
        series("libvirt_domain_info_maximum_memory_bytes", [8 * GIB] * len(used), first, **labels),
        series(
            "libvirt_domain_memory_stats_rss_bytes",
            [None if value is None else value * GIB for value in used], first, **labels,
        ),
    ]  # fmt: skip


def said(fleet: Fleet, *words: str) -> bool:
    return any(all(word in str(f) for word in words) for f in fleet.findings)


def test_a_vm_that_moves_is_one_vm_on_its_last_host(tmp_path: Path) -> None:
    fleet = fleet_of(
        tmp_path / "q.json",
        *domain("db", "kvm1", [2, 2, 2, 2, 2]),
        *domain("db", "kvm2", [1, 3, 3, 3], first=4),  # at 4 both tell of it
    )
    (vm,) = fleet.vms
    assert (vm.name, vm.host) == ("db", "kvm2")
    assert (fleet.in_use[0] / MIB / 1024).tolist() == [2, 2, 2, 2, 2, 3, 3, 3]
    assert said(fleet, "note", "db has moved", "kvm1, kvm2")


def test_two_vms_of_one_name_are_not_one(tmp_path: Path) -> None:
    fleet = fleet_of(
        tmp_path / "q.json", *domain("web", "kvm1", [2] * 6), *domain("web", "kvm2", [5] * 6)
    )
    assert {vm.name: vm.host for vm in fleet.vms} == {"web (kvm1)": "kvm1", "web (kvm2)": "kvm2"}
    assert fleet.in_use.max(axis=1).tolist() == [2 * 1024 * MIB, 5 * 1024 * MIB]
    assert said(fleet, "warning", "VMs of one name")


def test_a_node_exporter_on_a_host_tells_of_the_host(tmp_path: Path) -> None:
    fleet = fleet_of(
        tmp_path / "q.json",
        *domain("web", "kvm1", [2] * 3),
        series("node_memory_MemTotal_bytes", [256 * GIB] * 3, instance="kvm1:9100"),
        series("node_memory_MemAvailable_bytes", [200 * GIB] * 3, instance="kvm1:9100"),
        series("node_memory_MemTotal_bytes", [4 * GIB] * 3, instance="guest7:9100"),
        series("node_memory_MemFree_bytes", [1 * GIB] * 3, instance="guest7:9100"),
    )
    assert {vm.name for vm in fleet.vms} == {"web", "guest7"}
    assert [(host.name, host.memory) for host in fleet.hosts] == [("kvm1", 256 * 1024 * MIB)]


def test_a_pod_that_is_migrated_in_kubevirt(tmp_path: Path) -> None:
    def part(node: str, used: float, first: int, count: int) -> list[Any]:
        labels = {"namespace": "shop", "name": "db", "node": node, "pod": f"virt-{node}"}
        return [
            series("kubevirt_vmi_memory_domain_bytes", [8 * GIB] * count, first, **labels),
            series("kubevirt_vmi_memory_resident_bytes", [used * GIB] * count, first, **labels),
        ]

    fleet = fleet_of(tmp_path / "q.json", *part("n1", 2, 0, 5), *part("n2", 4, 4, 4))
    (vm,) = fleet.vms
    assert (vm.name, vm.host) == ("shop/db", "n2")
    assert fleet.in_use[0, -1] == 4 * 1024 * MIB


def test_a_gap_of_minutes_is_none_and_a_gap_of_hours_means_off(tmp_path: Path) -> None:
    used: list[float | None] = [*[2] * 9, None, None, 2, *[None] * 24, 3, 3, 3]
    fleet = fleet_of(tmp_path / "q.json", *domain("web", "kvm1", used)[1:],
                     series("libvirt_domain_info_maximum_memory_bytes", [8 * GIB],
                            domain="web", instance="kvm1:9177"))  # fmt: skip
    on = fleet.on()[0]
    assert on[:12].all()
    assert not on[12:-3].any()
    assert on[-3:].all()
    assert fleet.active[0][on].tolist() == [UNKNOWN] * int(on.sum())
    assert np.nanmax(fleet.in_use) == 3 * 1024 * MIB


def test_stale_markers_and_infinities_are_no_amounts(tmp_path: Path) -> None:
    labels = {"domain": "web", "instance": "kvm1:9177"}
    rss = series("libvirt_domain_memory_stats_rss_bytes", [2 * GIB] * 6, **labels)
    rss["values"][1][1] = "NaN"
    fleet = fleet_of(
        tmp_path / "q.json",
        series("libvirt_domain_info_maximum_memory_bytes", [8 * GIB] * 6, **labels), rss,
    )  # fmt: skip
    assert (fleet.in_use[0] / MIB / 1024).tolist() == [2] * 6
