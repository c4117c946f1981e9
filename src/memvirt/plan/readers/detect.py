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
from .tables import Belongs, after_titles, first_row, read_text

__all__ = ["read_file", "read_files"]

_MOST_BYTES = 16 << 30
_START = 1 << 16  # bytes in which headings below titles are looked for
_FORMATS = (
    "an RVTools export (xlsx, or CSV of vInfo, vMemory or vHost), esxtop's batch CSV, a "
    "Prometheus range query (JSON or Parquet), a Bitbrains trace, a record of memvirt run, or the "
    "plain CSV of docs/plan.md"
)
_CSV: tuple[tuple[Belongs, Reader], ...] = (
    (is_esxtop, read_esxtop),
    (is_bitbrains, read_bitbrains),
    (is_rvtools, read_rvtools),
    (is_plain, read_plain),
)


class UnknownFormatError(PlanDataError):
    """A file of none of the formats that can be read."""


def read_files(paths: list[Path]) -> list[Reading]:
    """Read files, and all files of folders (a Bitbrains trace is a folder).

    Prometheus' answers are read together: one query asks for one metric. A file in a folder that
    is no measurement is a warning. Raises PlanDataError.
    """
    readers: list[tuple[Path, Reader]] = []
    strange = Reading(paths[0], "nothing", [])
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
            if not inside:
                raise PlanDataError(f"{path}: is an empty folder; name a folder of measurements")
            for file in inside:
                try:
                    readers.append((file, _reader(file)))
                except UnknownFormatError:
                    Findings(file, strange.findings).warn("is no measurement; left out")
        else:
            readers.append((path, _reader(path)))
    if not readers:
        raise PlanDataError(f"{paths[0]}: holds none of the formats that can be read: {_FORMATS}")
    queries = [path for path, reader in readers if reader is read_prometheus]
    readings = [reader(path) for path, reader in readers if reader is not read_prometheus]
    readings += [read_prometheus(*queries)] if queries else []
    return readings + ([strange] if strange.findings else [])


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
        text = wide.decode("utf-8-sig", errors="replace")
        if len(wide) < _START:
            text += file.read(_START).decode("utf-8", errors="replace")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = read_text(path, findings)
    for belongs, reader in _CSV:
        if belongs(first_row(after_titles(text, belongs)[0])[0]):
            return reader
    raise UnknownFormatError(f"{path}: is not one of the formats that can be read: {_FORMATS}")
