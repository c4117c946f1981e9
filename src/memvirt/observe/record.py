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

import pyarrow as pa
import pyarrow.parquet as pq

from memvirt.output_file import OutputFile
from memvirt.vmkernel.events import Event, EventLog
from memvirt.vmkernel.samples import HostMemory, Sample, VmMemory

FORMAT = "memvirt record 1"
_ROWS_IN_MEMORY = 4096
_TYPES = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}


def _column_type(annotation: str) -> Any:
    return _TYPES.get(annotation, pa.string())


_SCHEMA = pa.schema(
    [(f"host_{field.name}", _column_type(str(field.type))) for field in fields(HostMemory)]
    + [(field.name, _column_type(str(field.type))) for field in fields(VmMemory)]
)


class RecordError(Exception):
    """A file that is no record; the message names it."""


class Recorder:
    """Writes samples to ``path``. Use as a context manager: leaving it completes the file,
    whatever ended the run. Raises OutputFileError if it cannot be written, with nothing left."""

    def __init__(self, path: Path, *, scenario: str, name: str, version: str) -> None:
        self.path = path
        about = {"format": FORMAT, "scenario": scenario, "name": name, "version": version}
        self._file = OutputFile(path)
        try:
            self._writer = pq.ParquetWriter(
                self._file, _SCHEMA.with_metadata({"memvirt": json.dumps(about)})
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

    def add(self, sample: Sample) -> None:
        """Keep one sample: a row for each VM, the ended ones included."""
        host = {f"host_{name}": value for name, value in asdict(sample.host).items()}
        host["host_state"] = sample.host.state.name.lower()
        self._rows += [host | asdict(vm) for vm in sample.vms]
        self.samples += 1
        if len(self._rows) >= _ROWS_IN_MEMORY:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            rows, self._rows = self._rows, []
            self._writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))

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
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"memvirt"])
        if about["format"] != FORMAT:
            raise RecordError(f"{path}: {about['format']}, where {FORMAT} is needed")
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from error
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path}: not a memvirt record ({error})") from error
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    return columns, about


def export_events(log: EventLog, path: Path) -> int:
    """Write the event log to ``path``, all or nothing: CSV if its name ends so, else JSON lines.

    Returns the number of events. Raises OutputFileError.
    """
    rows = [asdict(event) for event in log]
    with OutputFile(path) as raw:
        file = io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", newline="")
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, [field.name for field in fields(Event)])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        file.detach().detach()
    return len(rows)
