# SPDX-License-Identifier: Apache-2.0
"""Live VMs in esxtop's batch layout: as ``batch`` has it, an empty cell being unknown.

Every VM seen at the start has its columns; one that ends leaves them empty. One that starts later
has none: its samples are in the record.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TextIO

from memvirt.live.live_sample import LiveHostMemory, LiveSample

from .counter_path import HEADING, SAMPLE_TIME, group_path, time_cells
from .esxtop import mebibytes
from .live_esxtop import LIVE_COLUMNS, LiveInterval

_COLUMNS = [column for column in LIVE_COLUMNS if column.counter]


def _mebibytes(pages: int | None) -> float | None:
    return None if pages is None else mebibytes(pages)


_HOST: tuple[tuple[str, Callable[[LiveHostMemory], float | None]], ...] = (
    ("Machine MBytes", lambda host: mebibytes(host.total)),
    ("Free MBytes", lambda host: mebibytes(host.free)),
    ("Available MBytes", lambda host: mebibytes(host.available)),
    ("PShare Shared MBytes", lambda host: _mebibytes(host.ksm_shared)),
    ("PShare Common MBytes", lambda host: _mebibytes(host.ksm_frames)),
    ("Swap Used MBytes", lambda host: mebibytes(host.swap_used)),
    ("Memctl Current MBytes", lambda host: _mebibytes(host.balloon)),
    ("Watching % Processor", lambda host: host.cost_percent),
)


class LiveBatchWriter:
    """Writes samples of a host named ``host`` to ``file``, with columns for ``names``."""

    def __init__(self, file: TextIO, host: str, names: Sequence[str], start: datetime) -> None:
        self._writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        self._file = file
        self._names = list(names)
        self._start = start.astimezone(UTC)
        self._before: LiveSample | None = None
        counters = [*(name for name, _ in _HOST), SAMPLE_TIME]
        heading = [HEADING, *(f"\\\\{host}\\Memory\\{name}" for name in counters)]
        for number, name in enumerate(self._names, 1):
            group = group_path(host, number, name)
            heading += [f"{group}\\{column.counter}" for column in _COLUMNS]
        self._writer.writerow(heading)

    def write(self, sample: LiveSample) -> None:
        """One row."""
        interval = LiveInterval(sample, self._before)
        self._before = sample
        when, seconds = time_cells(self._start, sample.host.time_ns)
        row = [when]
        row += [_number(value(sample.host)) for _, value in _HOST] + [seconds]
        vms = {vm.name: vm for vm in sample.vms}
        for name in self._names:
            vm = vms.get(name)
            row += [
                "" if vm is None else _number(column.value(interval, vm)) for column in _COLUMNS
            ]
        self._writer.writerow(row)
        self._file.flush()


def _number(value: str | float | None) -> str:
    return "" if value is None else f"{float(value):.2f}"
