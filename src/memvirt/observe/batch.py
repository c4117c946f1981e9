# SPDX-License-Identifier: Apache-2.0
"""esxtop's batch layout: CSV with a column for each counter of the host and of each VM.

The first column is the time, its heading names the format; the others are headed by a counter
path, ``\\\\host\\Object(instance)\\Counter``. One row for each sample. Every VM of the scenario has
its columns from the start, empty until it is powered on.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TextIO

from memvirt.vmkernel.samples import HostMemory, Sample

from .counter_path import HEADING, SAMPLE_TIME, group_path, time_cells
from .esxtop import COLUMNS, Interval, mebibytes

_HOST: tuple[tuple[str, Callable[[HostMemory], float]], ...] = (
    ("Machine MBytes", lambda host: mebibytes(host.total)),
    ("Kernel MBytes", lambda host: mebibytes(host.vmkernel)),
    ("NonKernel MBytes", lambda host: mebibytes(host.guest + host.overhead)),
    ("Free MBytes", lambda host: mebibytes(host.free)),
    ("Kernel Managed MBytes", lambda host: mebibytes(host.total - host.vmkernel)),
    ("Kernel MinFree MBytes", lambda host: mebibytes(host.min_free)),
    ("Kernel Reserved MBytes", lambda host: mebibytes(host.reserved)),
    ("Kernel Unreserved MBytes", lambda host: mebibytes(host.unreserved)),
    ("Kernel State", lambda host: float(host.state)),
    ("PShare Shared MBytes", lambda host: mebibytes(host.shared)),
    ("PShare Common MBytes", lambda host: mebibytes(host.common)),
    ("PShare Savings MBytes", lambda host: mebibytes(host.sharing_saved)),
    ("Swap Used MBytes", lambda host: mebibytes(host.swapped)),
    ("Swap Target MBytes", lambda host: mebibytes(host.swap_target)),
    ("Total Compressed MBytes", lambda host: mebibytes(host.zipped)),
    ("Total Saved By Compression MBytes", lambda host: mebibytes(host.zip_saved)),
    ("Memctl Current MBytes", lambda host: mebibytes(host.balloon)),
    ("Memctl Target MBytes", lambda host: mebibytes(host.balloon_target)),
    ("Memctl Max MBytes", lambda host: mebibytes(host.balloon_max)),
)
_RATES = (
    ("Swap MBytes Read/sec", "swap_reads_total"),
    ("Swap MBytes Write/sec", "swap_writes_total"),
)
_VM = [column for column in COLUMNS if column.counter]


class BatchWriter:
    """Writes samples of a host named ``host`` to ``file``; ``vm_names`` are all its VMs."""

    def __init__(self, file: TextIO, host: str, vm_names: Sequence[str], start: datetime) -> None:
        self._writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        self._file = file
        self._names = list(vm_names)
        self._start = start.astimezone(UTC)
        self._before: Sample | None = None
        heading = [HEADING]
        counters = [name for name, _ in (*_HOST, *_RATES)] + [SAMPLE_TIME]
        heading += [f"\\\\{host}\\Memory\\{name}" for name in counters]
        for number, name in enumerate(self._names, 1):
            group = group_path(host, number, name)
            heading += [f"{group}\\{column.counter}" for column in _VM]
        self._writer.writerow(heading)

    def write(self, sample: Sample) -> None:
        """One row. Its time is that of the start and virtual time."""
        interval = Interval(sample, self._before)
        self._before = sample
        host = sample.host
        when, seconds = time_cells(self._start, host.time_ns)
        row = [when]
        row += [f"{value(host):.2f}" for _, value in _HOST]
        before = interval.before.host if interval.before is not None else None
        for _, field in _RATES:
            earlier = getattr(before, field) if before is not None else 0
            row.append(f"{interval.rate(getattr(host, field), earlier):.2f}")
        row.append(seconds)
        vms = {vm.name: vm for vm in sample.vms}
        for name in self._names:
            vm = vms.get(name)
            if vm is None:
                row += [""] * len(_VM)
            else:
                row += [f"{float(column.value(interval, vm)):.2f}" for column in _VM]
        self._writer.writerow(row)
        self._file.flush()
