# SPDX-License-Identifier: Apache-2.0
"""Which format a file has, by what is in it rather than by its name."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from memvirt.input_file import InputFileError, check_input
from memvirt.notebook import first_line
from memvirt.plan.findings import Findings, PlanDataError
from memvirt.plan.readings import Reader, Reading

from .bitbrains import is_bitbrains, read_bitbrains
from .esxtop import is_esxtop, read_esxtop
from .own_record import read_own_record
from .plain import is_plain, read_plain
from .prometheus import read_prometheus
from .rvtools import is_rvtools, read_rvtools
from .tables import first_row, read_text

__all__ = ["read_file", "read_files"]

_MOST_BYTES = 16 << 30
_FORMATS = (
    "an RVTools export (xlsx, or CSV of vInfo, vMemory or vHost), esxtop's batch CSV, a "
    "Prometheus range query (JSON or Parquet), a Bitbrains trace, a record of memvirt run, or the "
    "plain CSV of docs/plan.md"
)
_CSV: tuple[tuple[object, Reader], ...] = (
    (is_esxtop, read_esxtop),
    (is_bitbrains, read_bitbrains),
    (is_rvtools, read_rvtools),
    (is_plain, read_plain),
)


def read_files(paths: list[Path]) -> list[Reading]:
    """Read files, and all files of folders (a Bitbrains trace is a folder).

    Prometheus' answers are read together: one query asks for one metric. Raises PlanDataError.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
            if not inside:
                raise PlanDataError(f"{path}: is an empty folder; name a folder of measurements")
            files += inside
        else:
            files.append(path)
    readers = [(path, _reader(path)) for path in files]
    queries = [path for path, reader in readers if reader is read_prometheus]
    readings = [reader(path) for path, reader in readers if reader is not read_prometheus]
    return readings + ([read_prometheus(*queries)] if queries else [])


def read_file(path: Path) -> Reading:
    """What one file tells. Raises PlanDataError, also for a file that cannot be opened."""
    return _reader(path)(path)


def _reader(path: Path) -> Reader:
    try:
        return _reader_of(path)
    except OSError as error:
        raise PlanDataError(f"{path}: {error.strerror or first_line(error)}") from error


def _reader_of(path: Path) -> Reader:
    try:
        check_input(path, most=_MOST_BYTES)
    except InputFileError as error:
        raise PlanDataError(str(error)) from error
    with path.open("rb") as file:
        start = file.read(8)
    if start[:4] == b"PAR1":
        try:
            metadata = pq.read_schema(path).metadata or {}
        except pa.ArrowException as error:
            raise PlanDataError(f"{path}: damaged Parquet file ({first_line(error)})") from error
        return read_own_record if b"memvirt" in metadata else read_prometheus
    if start[:4] == b"PK\x03\x04" or start == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
        return read_rvtools
    findings = Findings(path)
    if start.lstrip()[:1] in (b"{", b"["):
        return read_prometheus
    with path.open("rb") as file:
        wide = file.readline()
    headings, _ = first_row(wide.decode("utf-8-sig", errors="replace"))
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        headings, _ = first_row(read_text(path, findings))
    for belongs, reader in _CSV:
        if belongs(headings):  # type: ignore[operator]
            return reader
    raise findings.error(f"is not one of the formats that can be read: {_FORMATS}")
