# SPDX-License-Identifier: Apache-2.0
"""Answers of a plan, as frozen records. Amounts are MiB, times hours; ranges are (low, high)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from memvirt.notebook import html_table, one_line

from .findings import Finding

__all__ = ["FailoverAnswer", "HostAnswer", "PlanAnswer", "Remedy", "VmAnswer"]

Low = float
High = float
Span = tuple[Low, High]


@dataclass(frozen=True, slots=True)
class VmAnswer:
    """What one VM has to expect.

    ``hours``: hours of the series in which it has memory ballooned, compressed, swapped, or less
    than it actively uses (thrash), each over all draws. ``probability``: part of the draws in which
    that happens at all. ``peak_mib``: most memory in that state.
    """

    name: str
    host: str
    memory_mib: float
    hours_on: float
    hours: dict[str, Span]
    probability: dict[str, float]
    peak_mib: dict[str, Span]

    @property
    def touched(self) -> bool:
        """True if anything is taken from it in any draw."""
        return any(self.probability.values())


@dataclass(frozen=True, slots=True)
class Remedy:
    """What would make a host fit: limits of VMs to raise (MiB), and then memory to add (MiB) or
    VMs to remove, if that is not enough."""

    add_mib: Span
    remove: tuple[str, ...]
    raise_limits_mib: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class HostAnswer:
    """One host. ``fits``: part of the draws in which its VMs fit. ``series`` are those of the most
    pessimistic draw, in MiB, for plots; empty for hosts that are never short of memory."""

    name: str
    memory_mib: float
    min_free_mib: float
    vms: int
    fits: float
    worst_state: tuple[str, str]
    lowest_free_mib: Span
    peak_demand_mib: Span
    limiting_hour: str
    why: str
    remedy: Remedy | None
    series: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class FailoverAnswer:
    """What happens when hosts die: the worst single case, or chain of cases, found."""

    failures: int
    fits: bool
    worst_host: str
    worst_state: str
    not_restarted: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class PlanAnswer:
    """The answer to one question."""

    question: str
    verdict: str
    fits: float
    hosts: tuple[HostAnswer, ...]
    vms: tuple[VmAnswer, ...]
    refused: dict[str, str]
    fewest_hosts: Span | None  # a bound below, and what was found; None unless asked
    failover: FailoverAnswer | None
    assumptions: dict[str, str]
    draws: int
    seed: int
    start: float
    interval_s: float
    points: int
    findings: tuple[Finding, ...]
    what_ifs: tuple[PlanAnswer, ...] = ()

    def __repr__(self) -> str:
        return (
            f"<PlanAnswer: {one_line(self.verdict)}; {len(self.vms)} VMs on {len(self.hosts)} "
            f"hosts, fits in {self.fits:.0%} of {self.draws} draws>"
        )

    def _repr_html_(self) -> str:
        """The hosts, as a table for notebooks; memory in MiB."""
        rows = (
            (host.name, host.vms, round(host.memory_mib), f"{host.fits:.0%}",
             " to ".join(host.worst_state), host.why)
            for host in self.hosts
        )  # fmt: skip
        headers = ("host", "VMs", "memory (MiB)", "fits", "worst state", "why")
        return html_table(repr(self)[1:-1], headers, rows)

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        return asdict(self)
