# SPDX-License-Identifier: Apache-2.0
"""The time series of a run as one Parquet file, and the event log as JSON lines or CSV.

A record has one row for each VM at each sample: the columns of ``VmMemory``, and those of
``HostMemory`` with the prefix ``host_``. Quantities are 4 KiB pages, ``host_time_ns`` is virtual
time. The file's metadata has the scenario, its name and memvirt's version. It appears under its
name when it is complete (``output_file``), so that what is there can always be read.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memvirt.errors import MemvirtError
from memvirt.input_file import InputFileError, check_input
from memvirt.live.live_sample import LiveSample
from memvirt.notebook import first_line, one_line
from memvirt.output_file import OutputFile, OutputFileError
from memvirt.vmkernel.events import Event, EventLog
from memvirt.vmkernel.samples import HostMemory, HostState, Sample, VmMemory

__all__ = ["EventWriter", "RecordError", "Recorder", "read_host_record", "read_record"]

FORMAT = "memvirt record 1"
_MOST_BYTES = 64 << 30
_ROWS_IN_MEMORY = 4096
_MOST_PAGES = 1 << 28  # of a host or a VM: 1 TiB
_LARGEST = 2.0**53  # of any amount or time
_TYPES = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}

_KINDS = {pa.int64(): "i", pa.float64(): "f", pa.string(): "O", pa.bool_(): "b"}


def _column_type(annotation: str) -> Any:
    return _TYPES.get(annotation.removesuffix(" | None"), pa.string())


def _schema(host: type[Any], vm: type[Any]) -> Any:
    return pa.schema(
        [(f"host_{field.name}", _column_type(str(field.type))) for field in fields(host)]
        + [(field.name, _column_type(str(field.type))) for field in fields(vm)]
    )


class RecordError(MemvirtError):
    """A file that is no record; the message names it."""


class Recorder:
    """Writes samples to ``path``. Use as a context manager: leaving it completes the file,
    whatever ended the run. ``host`` and ``vm`` are the records samples consist of. Raises
    OutputFileError if it cannot be written, with nothing left."""

    def __init__(
        self,
        path: Path,
        *,
        scenario: str,
        name: str,
        version: str,
        host: type[Any] = HostMemory,
        vm: type[Any] = VmMemory,
    ) -> None:
        self.path = path
        self._schema = _schema(host, vm)
        about = {"format": FORMAT, "scenario": scenario, "name": name, "version": version}
        self._file = OutputFile(path)
        try:
            self._writer = pq.ParquetWriter(
                self._file, self._schema.with_metadata({"memvirt": json.dumps(about)})
            )
        except BaseException:
            self._file.discard()
            raise
        self._rows: list[dict[str, Any]] = []
        self.samples = 0

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, sample: Sample | LiveSample) -> None:
        """Keep one sample: a row for each VM, the ended ones included."""
        host = {f"host_{name}": value for name, value in asdict(sample.host).items()}
        if isinstance(sample, Sample):
            host["host_state"] = sample.host.state.name.lower()
        self._rows += [host | asdict(vm) for vm in sample.vms]
        self.samples += 1
        if len(self._rows) >= _ROWS_IN_MEMORY:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            rows, self._rows = self._rows, []
            self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))

    def close(self) -> None:
        """Complete the file and give it its name. Calling again does nothing.

        Raises OutputFileError, with nothing left.
        """
        if self._file.closed:
            return
        try:
            self._flush()
            self._writer.close()
        except BaseException:
            self._file.discard()
            raise
        self._file.commit()


def read_record(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Columns of a record by name (NumPy arrays), and its metadata. Raises RecordError."""
    try:
        check_input(path, most=_MOST_BYTES)
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"memvirt"])
        if about["format"] != FORMAT:
            raise RecordError(f"{path}: {one_line(str(about['format']))}, where {FORMAT} is needed")
        if not isinstance(about.get("name", ""), str):
            raise RecordError(f"{path}: its name is no text")
    except InputFileError as error:
        raise RecordError(str(error)) from error
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or first_line(error)}") from error
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path}: not a memvirt record ({first_line(error)})") from error
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    return columns, about


def read_host_record(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """As ``read_record``, for one of ``memvirt run``: all its columns, of sound values.

    Raises RecordError, which names the column.
    """
    columns, about = read_record(path)
    for field in _schema(HostMemory, VmMemory):
        column = columns.get(field.name)
        if column is None:
            raise RecordError(
                f"{path}: no record of a host of memvirt run: {field.name} is missing"
            )
        if column.dtype.kind != _KINDS[field.type] or not _is_sound(column):
            raise RecordError(f"{path}: column {field.name} holds what no run records")
    for name in ("host_total", "memory"):
        if not ((columns[name] >= 0) & (columns[name] <= _MOST_PAGES)).all():
            raise RecordError(f"{path}: column {name} holds sizes that cannot be")
    states = {state.name.lower() for state in HostState}
    if not states.issuperset(columns["host_state"]):
        raise RecordError(f"{path}: column host_state holds other words than {sorted(states)}")
    return columns, about


def _is_sound(column: Any) -> bool:
    if column.dtype.kind == "O":
        return all(isinstance(value, str) for value in column)
    if column.dtype.kind == "b":
        return True
    return bool((np.abs(column.astype(np.float64)) <= _LARGEST).all())


class EventWriter:
    """Writes every event of ``log`` to ``path`` as it is recorded, from those still kept on.

    CSV if the name ends so, else JSON lines. The bounded log keeps the last events only; a file
    that is begun right after its host was made has all of them. Use as a context manager: leaving
    it completes the file, whatever ended the run. Raises OutputFileError; what fails while the host
    runs is raised at the end, since an error in the middle of a decision would harm the VMs.
    """

    def __init__(self, log: EventLog, path: Path) -> None:
        self.written = 0
        self._error: OutputFileError | None = None
        self._raw = OutputFile(path)
        self._file = io.TextIOWrapper(io.BufferedWriter(self._raw), "utf-8", newline="")
        self._csv = (
            csv.DictWriter(self._file, [field.name for field in fields(Event)])
            if path.suffix == ".csv"
            else None
        )
        if self._csv is not None:
            self._csv.writeheader()
        self._unsubscribe = log.subscribe(self._write, replay=True)

    def _write(self, event: Event) -> None:
        if self._error is not None:
            return
        row = asdict(event)
        try:
            if self._csv is not None:
                self._csv.writerow(row)
            else:
                self._file.write(json.dumps(row) + "\n")
        except OutputFileError as error:
            self._error = error
        self.written += 1

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Complete the file and give it its name. Calling again does nothing."""
        self._unsubscribe()
        if self._raw.closed:
            return
        try:
            if self._error is not None:
                raise self._error
            self._file.detach().detach()  # flushes both buffers
        except BaseException:
            self._raw.discard()
            raise
        self._raw.commit()
