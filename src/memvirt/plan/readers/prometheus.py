# SPDX-License-Identifier: Apache-2.0
"""Range queries of Prometheus: the JSON of its HTTP API, or Parquet with a row for each sample.

Three exporters are known, by the names of their metrics: libvirt's (a label ``domain``), KubeVirt's
(``namespace`` and ``name``) and the node exporter run inside guests (``instance``). A Parquet file
has the columns ``timestamp`` and ``value``, the metric's name in ``__name__`` (or ``metric``), and
its labels as columns of their own or in one struct or map column ``labels``.

Memory in use: resident memory of the process or domain, where the exporter tells it (its guest has
touched it, the host must back it), else what the guest's kernel does not call free. Active memory:
what the node exporter counts as active, or what the guest's kernel does not call available (used
without page cache), an upper bound of the working set.

A VM that several hosts' exporters tell of one after the other has moved; where they tell of it at
the same times, they are VMs of one name. A node exporter on a host of VMs tells that host's memory.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from memvirt.plan.findings import Findings, name_some
from memvirt.plan.readings import HostReading, Reading, VmReading
from memvirt.plan.units import pages_of

from .series import seconds

# metric -> (meaning). Names of older and newer versions side by side.
_METRICS = {
    # libvirt
    "libvirt_domain_info_maximum_memory_bytes": "memory",
    "libvirt_domain_memory_stats_maximum_bytes": "memory",
    "libvirt_domain_info_memory_usage_bytes": "balloon_size",
    "libvirt_domain_memory_stats_actual_balloon_bytes": "balloon_size",
    "libvirt_domain_memory_stats_rss_bytes": "resident",
    "libvirt_domain_memory_stats_available_bytes": "guest_total",
    "libvirt_domain_memory_stats_usable_bytes": "guest_free",
    "libvirt_domain_memory_stats_unused_bytes": "guest_unused",
    # KubeVirt
    "kubevirt_vmi_memory_domain_bytes": "memory",
    "kubevirt_vmi_memory_domain_bytes_total": "memory",
    "kubevirt_vmi_memory_domain_total_bytes": "memory",
    "kubevirt_vmi_memory_actual_balloon_bytes": "balloon_size",
    "kubevirt_vmi_memory_resident_bytes": "resident",
    "kubevirt_vmi_memory_available_bytes": "guest_total",
    "kubevirt_vmi_memory_usable_bytes": "guest_free",
    "kubevirt_vmi_memory_unused_bytes": "guest_unused",
    "kubevirt_vmi_memory_used_bytes": "guest_used",
    # node exporter, in the guest
    "node_memory_MemTotal_bytes": "memory",
    "node_memory_MemTotal": "memory",
    "node_memory_MemAvailable_bytes": "guest_free",
    "node_memory_MemAvailable": "guest_free",
    "node_memory_MemFree_bytes": "guest_unused",
    "node_memory_MemFree": "guest_unused",
    "node_memory_Active_bytes": "active",
    "node_memory_Active": "active",
}
# One metric of newer libvirt exporters, its label ``stat`` says which amount.
_STAT_METRIC = "libvirt_domain_memory_stats_bytes"
_STATS = {
    "maximum": "memory", "actual": "balloon_size", "rss": "resident", "available": "guest_total",
    "usable": "guest_free", "unused": "guest_unused",
}  # fmt: skip
_MOVING = 3  # samples for which both ends of a migration may tell of a VM
_STALE = 330.0  # seconds: Prometheus itself calls a sample stale after 5 minutes


@dataclass
class _Samples:
    """Samples of one metric of one VM."""

    times: list[Any] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)


_Parts = dict[str, _Samples]  # by meaning


def read_prometheus(*paths: Path) -> Reading:
    """Answers of one or several queries, as one reading. Raises PlanDataError."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    findings = Findings(f"{paths[0]}{more}")
    series = [found for path in paths for found in _series_of(path)]
    vms: dict[str, dict[str, _Parts]] = {}
    unknown: dict[str, int] = {}
    for labels, times, values in series:
        metric = labels.get("__name__", "")
        meaning = _METRICS.get(metric)
        if metric == _STAT_METRIC:
            meaning = _STATS.get(labels.get("stat", ""))
        vm = _vm_name(metric, labels)
        if meaning is None or not vm:
            unknown[metric or "(no name)"] = unknown.get(metric or "(no name)", 0) + 1
            continue
        parts = vms.setdefault(vm, {}).setdefault(_host_name(metric, labels), {})
        samples = parts.setdefault(meaning, _Samples())
        samples.times.append(times)
        samples.values.append(values)
    if unknown:
        findings.note(f"series that tell nothing of VMs' memory: {name_some(sorted(unknown), 4)}")
    if not vms:
        raise findings.error(
            "has no memory metric of libvirt (libvirt_domain_...), KubeVirt "
            "(kubevirt_vmi_memory_...) or the node exporter (node_memory_...); a query must keep "
            "the metric's name"
        )
    of_vms = {host for hosts in vms.values() for host in hosts if host}
    hosts = [name for name in vms if name in of_vms]
    found = [
        _vm(*one, findings)
        for name, by_host in sorted(vms.items())
        if name not in of_vms
        for one in _told_apart(name, by_host, findings)
    ]
    sizes = {name: _merged(vms[name].get("", {}).get("memory"))[1] for name in hosts}
    return Reading(
        paths[0], "Prometheus", [vm for vm in found if vm is not None],
        [HostReading(n, pages_of(float(m.max()))) for n, m in sizes.items() if m.size],
        findings.list,
    )  # fmt: skip


def _told_apart(
    name: str, by_host: dict[str, _Parts], findings: Findings
) -> list[tuple[str, _Parts, str]]:
    """One VM that has been on these hosts, or several of one name: name, samples, (last) host."""
    times = {
        host: np.unique(np.concatenate([_merged(samples)[0] for samples in parts.values()]))
        for host, parts in by_host.items()
    }
    shared = [
        np.intersect1d(times[a], times[b]).size for a, b in itertools.combinations(sorted(times), 2)
    ]
    if max(shared, default=0) > _MOVING:
        findings.warn(
            f"VM {name}: hosts {name_some(sorted(times))} tell of it at the same times; taken as "
            "VMs of one name"
        )
        return [(f"{name} ({host})", parts, host) for host, parts in sorted(by_host.items())]
    last = max(times, key=lambda host: times[host].max(initial=0))
    if len(times) > 1:
        findings.note(f"VM {name} has moved between hosts {name_some(sorted(times))}")
    joined: _Parts = {}
    for parts in by_host.values():
        for meaning, samples in parts.items():
            whole = joined.setdefault(meaning, _Samples())
            whole.times += samples.times
            whole.values += samples.values
    return [(name, joined, last)]


def _host_name(metric: str, labels: dict[str, str]) -> str:
    """The host a series of a VM was taken on; empty for what a guest tells of itself."""
    if metric.startswith("kubevirt"):
        return labels.get("node", "")
    if metric.startswith("libvirt"):
        return labels.get("hypervisor") or re.sub(r":\d+$", "", labels.get("instance", ""))
    return ""


def _series_of(path: Path) -> Any:
    findings = Findings(path)
    with path.open("rb") as file:
        parquet = file.read(4) == b"PAR1"
    return _parquet_series(path, findings) if parquet else _json_series(path, findings)


def _vm_name(metric: str, labels: dict[str, str]) -> str:
    if metric.startswith("kubevirt"):
        name, space = labels.get("name", ""), labels.get("namespace", "")
        return f"{space}/{name}" if space else name
    if metric.startswith("libvirt"):
        return labels.get("domain") or labels.get("instance_name") or labels.get("uuid", "")
    return re.sub(r":\d+$", "", labels.get("instance", "") or labels.get("nodename", ""))


def _json_series(path: Path, findings: Findings) -> Any:
    try:
        answer = json.loads(path.read_bytes())
        data = answer.get("data", answer)
        if answer.get("status", "success") != "success":
            raise findings.error(f"is an error of Prometheus: {answer.get('error', 'no reason')}")
        kind, results = data["resultType"], data["result"]
        if kind not in ("matrix", "vector"):
            raise findings.error(f"is a result of type {kind}; a range query gives a matrix")
        out = []
        for result in results:
            points = result["values"] if kind == "matrix" else [result["value"]]
            times = np.array([float(point[0]) for point in points])
            values = np.array([float(point[1]) for point in points])
            out.append((result["metric"], times, values))
        return out
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise findings.error(f"is no answer of Prometheus' query_range ({error!r})") from error


def _frame(table: Any) -> pl.DataFrame:
    """A table with a map of labels made into columns."""
    names = table.column_names
    if "labels" in names and pa.types.is_map(table.schema.field("labels").type):
        cells = [dict(cell or ()) for cell in table["labels"].to_pylist()]
        table = table.drop_columns(["labels"])
        for key in sorted({key for cell in cells for key in cell} - set(names)):
            table = table.append_column(key, pa.array([cell.get(key) for cell in cells]))
    found = pl.from_arrow(table)
    assert isinstance(found, pl.DataFrame)
    return found


def _parquet_series(path: Path, findings: Findings) -> Any:
    try:
        frame = _frame(pq.read_table(path))
    except (pa.ArrowException, OSError) as error:
        raise findings.error(f"is no Parquet file ({str(error).splitlines()[0]})") from error
    names = {name.lower(): name for name in frame.columns}
    time = names.get("timestamp") or names.get("time") or names.get("ts")
    value = names.get("value")
    if time is None or value is None:
        raise findings.error(
            f"has no columns timestamp and value; its columns are {name_some(frame.columns, 12)}"
        )
    if isinstance(frame[time].dtype, pl.Datetime):
        frame = frame.with_columns(pl.col(time).dt.epoch("ms") / 1000)
    if "labels" in frame.columns and isinstance(frame["labels"].dtype, pl.Struct):
        frame = frame.unnest("labels")
    if "__name__" not in frame.columns and "metric" in frame.columns:
        frame = frame.rename({"metric": "__name__"})
    if "__name__" not in frame.columns:
        raise findings.error("has no column __name__ (or metric) with the metrics' names")
    label_names = [name for name in frame.columns if name not in (time, value)]
    out = []
    for key, part in frame.group_by(label_names, maintain_order=True):
        labels = {n: str(v) for n, v in zip(label_names, key, strict=True) if v is not None}
        out.append(
            (
                labels,
                seconds(part[time].cast(pl.Float64).to_numpy()),
                part[value].cast(pl.Float64).to_numpy(),
            )
        )
    return out


def _merged(samples: _Samples | None) -> tuple[Any, Any]:
    if samples is None:
        return np.zeros(0), np.zeros(0)
    times, values = np.concatenate(samples.times), np.concatenate(samples.values)
    good = ~np.isnan(values)
    times, values = times[good], values[good]
    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    # Both ends of a migration tell of a VM for a moment: the larger counts.
    first = np.flatnonzero(np.diff(times, prepend=-np.inf) > 0)
    return times[first], np.maximum.reduceat(values, first) if first.size else values


def _at(grid: Any, samples: _Samples | None) -> Any:
    """Values of a series at the times of another: the last one before, if it is not stale."""
    times, values = _merged(samples)
    if times.size == 0:
        return np.full(grid.size, np.nan)
    before = np.searchsorted(times, grid, side="right") - 1
    age = grid - times[np.maximum(before, 0)]
    return np.where((before >= 0) & (age <= _STALE), values[np.maximum(before, 0)], np.nan)


def _vm(name: str, parts: _Parts, host: str, findings: Findings) -> VmReading | None:
    memory_times, memory = _merged(parts.get("memory"))
    if memory.size == 0:
        _, memory = _merged(parts.get("guest_total"))
        if memory.size == 0:
            findings.warn(f"VM {name} has no metric of its configured memory; left out")
            return None
        findings.note(
            f"VM {name}: what the guest sees as its memory stands for the configured size"
        )
    measured = [parts[what] for what in parts if what != "memory"]
    grid = (
        np.unique(np.concatenate([_merged(samples)[0] for samples in measured]))
        if measured
        else memory_times
    )
    resident, total = _at(grid, parts.get("resident")), _at(grid, parts.get("guest_total"))
    if np.isnan(total).all():
        total = np.full(grid.size, float(memory.max()))
    free, unused = _at(grid, parts.get("guest_free")), _at(grid, parts.get("guest_unused"))
    active = _at(grid, parts.get("active"))
    for estimate in (_at(grid, parts.get("guest_used")), total - free, total - unused):
        active = np.where(np.isnan(active), estimate, active)
    in_use = np.where(np.isnan(resident), total - unused, resident)
    return VmReading(
        name,
        memory=pages_of(float(memory.max())),
        host=host or None,
        driver=True if "balloon_size" in parts else None,
        times=grid,
        in_use=pages_of(np.minimum(in_use, memory.max())),  # type: ignore[arg-type]
        active=pages_of(np.minimum(active, memory.max())),  # type: ignore[arg-type]
    )
