# SPDX-License-Identifier: Apache-2.0
"""What a reader returns: the VMs and hosts that one file tells of, as far as it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .findings import Finding

Floats = np.ndarray[Any, np.dtype[np.float64]]


def _nothing() -> Floats:
    return np.zeros(0)


@dataclass
class VmReading:
    """One VM in one file. Amounts are 4 KiB pages; NaN or None: the file does not say.

    ``times`` are seconds since 1970 (or since the start of the series, if the file has no dates),
    rising; ``in_use`` and ``active`` have a value for each. ``moment``: the one value they have is
    an inventory's and stands for any time. *In use* is guest memory that has
    content somewhere, in machine memory or reclaimed: what a host with memory enough would have to
    back. *Active* is an estimate of the working set.
    """

    name: str
    memory: float = float("nan")
    reservation: float = float("nan")
    limit: float = float("nan")
    shares: float = float("nan")
    overhead: float = float("nan")
    group: str | None = None
    apart: str | None = None
    together: str | None = None
    host: str | None = None
    cluster: str | None = None
    powered_on: bool = True
    driver: bool | None = None
    times: Floats = field(default_factory=_nothing)
    in_use: Floats = field(default_factory=_nothing)
    active: Floats = field(default_factory=_nothing)
    moment: bool = False


@dataclass
class HostReading:
    """One host in one file; ``memory`` in 4 KiB pages. VMs of a host that dies are restarted on
    hosts of its ``cluster``."""

    name: str
    memory: float
    cluster: str = ""


@dataclass
class Reading:
    """All that one file tells."""

    path: Path
    kind: str
    vms: list[VmReading]
    hosts: list[HostReading] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


Reader = Callable[[Path], Reading]
