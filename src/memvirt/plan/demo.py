# SPDX-License-Identifier: Apache-2.0
"""Writes the data of ``make plan-demo``: a week of 60 VMs as plain CSV, and dumps of four VMs.

``python -m memvirt.plan.demo FOLDER``. The dumps are raw, 32 MiB each, with what guests of one
operating system have: zero pages, common pages, some with small changes, text, and their own.
"""

from __future__ import annotations

import csv
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from memvirt.address import PAGE_BYTES

from .generate import generate

_VMS, _DUMPS, _PAGES = 60, ("web-1", "web-2", "db-1", "db-2"), 8192


def write_series(path: Path) -> None:
    """A week at ten minutes, in the plain CSV of docs/plan.md."""
    fleet = generate(_VMS, interval=600)
    times = [
        datetime.fromtimestamp(fleet.start + point * fleet.interval, UTC).isoformat()
        for point in range(fleet.points)
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("time", "vm", "memory_gib", "in_use_mib", "active_mib"))
        for vm, in_use, active in zip(fleet.vms, fleet.in_use, fleet.active, strict=True):
            gib = vm.settings.memory >> 18
            for time, used, touched in zip(times, in_use, active, strict=True):
                writer.writerow((time, vm.name, gib, round(used / 256), round(touched / 256)))


def write_dump(path: Path, number: int) -> None:
    """One VM's memory; VMs of one kind (two after another) have more in common."""
    own = np.random.default_rng(100 + number)
    system, kind = np.random.default_rng(1), np.random.default_rng(10 + number // 2)
    pages = np.zeros((_PAGES, PAGE_BYTES), np.uint8)
    part = _PAGES // 8
    pages[:part] = system.integers(0, 256, (part, PAGE_BYTES), dtype=np.uint8)
    pages[part : 3 * part] = kind.integers(0, 256, (2 * part, PAGE_BYTES), dtype=np.uint8)
    changed = pages[2 * part : 3 * part]  # of the kind, with a few bytes of this VM's own
    at = own.integers(0, PAGE_BYTES, (part, 12))
    changed[np.arange(part)[:, None], at] = own.integers(0, 256, (part, 12), dtype=np.uint8)
    lines = own.integers(97, 123, (part, PAGE_BYTES // 32), dtype=np.uint8)
    pages[3 * part : 4 * part] = np.tile(lines, 32)
    pages[4 * part : 6 * part] = own.integers(0, 256, (2 * part, PAGE_BYTES), dtype=np.uint8)
    own.shuffle(pages, axis=0)
    path.write_bytes(pages.tobytes())


def main(folder: Path) -> None:
    """Write everything into ``folder``."""
    (folder / "dumps").mkdir(parents=True, exist_ok=True)
    write_series(folder / "fleet.csv")
    for number, name in enumerate(_DUMPS):
        write_dump(folder / "dumps" / f"{name}.raw", number)
    print(f"wrote {folder}/fleet.csv and {len(_DUMPS)} dumps in {folder}/dumps")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
