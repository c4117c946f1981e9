# SPDX-License-Identifier: Apache-2.0
"""This host's own memory, by ``/proc/meminfo`` and ``/proc/vmstat``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_PAGE_KIB = 4


@dataclass(frozen=True, slots=True)
class HostPages:
    """The host's memory in 4 KiB pages; ``*_total`` count since boot, None if not told."""

    total: int
    free: int
    available: int
    swap_total: int
    swap_used: int
    swap_reads_total: int | None
    swap_writes_total: int | None


def read_host_pages(proc: Path = Path("/proc")) -> HostPages:
    """The host's memory now."""
    memory: dict[str, int] = {}
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        memory[name] = int(rest.split()[0]) // _PAGE_KIB
    counters = dict(line.split() for line in (proc / "vmstat").read_text().splitlines())
    swap_total = memory.get("SwapTotal", 0)
    return HostPages(
        total=memory["MemTotal"],
        free=memory["MemFree"],
        available=memory.get("MemAvailable", memory["MemFree"]),
        swap_total=swap_total,
        swap_used=swap_total - memory.get("SwapFree", 0),
        swap_reads_total=int(counters["pswpin"]) if "pswpin" in counters else None,
        swap_writes_total=int(counters["pswpout"]) if "pswpout" in counters else None,
    )
