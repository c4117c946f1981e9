# SPDX-License-Identifier: Apache-2.0
"""Tables of text: CSV of any separator and encoding, and sheets of a workbook.

Everything is read as text: what a cell means is decided by the reader of the format, which can then
name file, row and column of what it cannot use.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from memvirt.plan.findings import Findings, PlanDataError, name_some
from memvirt.plan.units import AmountError, pages_of, parse_amount, parse_number, split_heading

_SEPARATORS = ",;\t|"
_MOST_SHOWN = 100
_TITLE_ROWS = 20  # people write titles above the headings; none writes more
_TOTALS = {"total", "totals", "grandtotal", "sum", "subtotal", "gesamt", "summe"}
_UNITS_SHOWN = {1: "bytes", 1 << 10: "KiB", 1 << 20: "MiB", 1 << 30: "GiB", 1 << 40: "TiB"}


Belongs = Callable[[list[str]], bool]  # whether headings are those of a format


@dataclass
class Table:
    """Columns of text by their headings. ``where`` names the sheet, if there is one.

    ``first`` is the number of the first row of data in the file, as messages count.
    """

    headings: list[str]
    frame: pl.DataFrame
    findings: Findings
    where: str = ""
    decimal_comma: bool = False
    first: int = 2

    @property
    def rows(self) -> int:
        return self.frame.height

    def find(self, names: Iterable[str]) -> str | None:
        """The heading of the first of ``names`` there is, whatever its unit, case and order."""
        by_name = {
            normal(split_heading(heading)[0]): heading for heading in reversed(self.headings)
        }
        by_name |= {normal(heading): heading for heading in reversed(self.headings)}
        return next((by_name[normal(name)] for name in names if normal(name) in by_name), None)

    def need(self, names: Sequence[str], what: str) -> str:
        """As ``find``; raises PlanDataError if there is no such column."""
        heading = self.find(names)
        if heading is None:
            raise self.findings.error(
                f"no column for {what}; it is called {' or '.join(names)}, "
                f"the columns are {name_some(self.headings, 12)}",
                self.where,
            )
        return heading

    def text(self, heading: str | None) -> list[str]:
        """A column as text, stripped; empty text where the column or the cell is missing."""
        if heading is None:
            return [""] * self.rows
        return [(cell or "").strip() for cell in self.frame[heading].to_list()]

    def pages(self, heading: str | None, unit: int | None = None) -> list[float]:
        """A column of amounts, in pages; NaN where empty. ``unit`` (bytes) is the format's own.

        A cell that is no amount is NaN and a warning; units that differ inside the column are
        taken at their word, with a note.
        """
        if heading is None:
            return [math.nan] * self.rows
        named = split_heading(heading)[1] or unit
        out, units, bad = [], set(), []
        for row, cell in enumerate(self.text(heading)):
            if not cell or cell == "-":
                out.append(math.nan)
                continue
            try:
                size, used = parse_amount(cell, named, decimal_comma=self.decimal_comma)
            except AmountError as error:
                bad.append(f"row {row + self.first}: {error}")
                out.append(math.nan)
                continue
            units.add(used)
            out.append(pages_of(size))
        if bad:
            self.findings.warn(
                f"column {heading}: {len(bad)} cells taken as unknown: {name_some(bad, 3)}",
                self.where,
            )
        if len(units) > 1:
            shown = ", ".join(_UNITS_SHOWN[used] for used in sorted(units))
            self.findings.note(
                f"column {heading} mixes units ({shown}); each cell counts in its own", self.where
            )
        return out

    def numbers(self, heading: str | None) -> list[float]:
        """A column of plain numbers; NaN where empty or (with a warning) where it is none."""
        if heading is None:
            return [math.nan] * self.rows
        out, bad = [], []
        for row, cell in enumerate(self.text(heading)):
            try:
                out.append(
                    parse_number(cell, decimal_comma=self.decimal_comma) if cell else math.nan
                )
            except AmountError as error:
                bad.append(f"row {row + self.first}: {error}")
                out.append(math.nan)
        if bad:
            self.findings.warn(
                f"column {heading}: {len(bad)} cells taken as unknown: {name_some(bad, 3)}",
                self.where,
            )
        return out

    def without(self, rows: list[int], why: str) -> Table:
        """The table without some rows, with a warning that names them; itself if there are none."""
        if not rows:
            return self
        shown = name_some([str(row + self.first) for row in rows])
        self.findings.warn(f"row {shown} {why}; left out", self.where)
        kept = ~np.isin(np.arange(self.rows), rows)
        return replace(self, frame=self.frame.filter(pl.Series(kept)))


def is_total(name: str) -> bool:
    """Whether a cell that should be a VM's name heads the sum below a list."""
    return normal(name) in _TOTALS


def normal(heading: str) -> str:
    """A heading without what differs between versions: case, spaces, marks."""
    return "".join(c for c in heading.lower() if c.isalnum() or c == "#")


def read_text(path: Path, findings: Findings) -> str:
    """A text file in UTF-8, UTF-16 (both with or without a mark) or Windows-1252."""
    raw = path.read_bytes()
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        findings.note("not UTF-8; read as Windows-1252")
        return raw.decode("cp1252", errors="replace")


def first_row(text: str) -> tuple[list[str], str]:
    """The headings of CSV text and their separator: the one that parts the first line most."""
    line = text.split("\n", 1)[0].split("\r", 1)[0]
    if line.lower().startswith("sep=") and len(line) == 5:
        return first_row(text.partition("\n")[2])[0], line[4]
    try:
        separator = max(_SEPARATORS, key=lambda c: len(next(csv.reader([line], delimiter=c), [])))
        cells = next(csv.reader([line], delimiter=separator), [])
    except csv.Error:  # a cell beyond all bounds: one heading, of no format
        return [line[:_MOST_SHOWN]], _SEPARATORS[0]
    return [cell.strip() for cell in cells], separator


def after_titles(text: str, belongs: Belongs) -> tuple[str, int]:
    """Text from the line on whose headings ``belongs`` to a format, and how many lines are above.

    All of the text if there is none.
    """
    rest = text
    for above in range(_TITLE_ROWS):
        if not rest:
            break
        if belongs(first_row(rest)[0]):
            return rest, above
        rest = rest.partition("\n")[2]
    return text, 0


def read_csv(path: Path, findings: Findings, belongs: Belongs) -> Table:
    """A CSV file, as text; lines above the headings are skipped, with a note.

    Raises PlanDataError if it is none.
    """
    text = read_text(path, findings)
    above = 0
    if text.lower().startswith("sep="):
        text, above = text.partition("\n")[2], 1
    text, titles = after_titles(text, belongs)
    if titles:
        findings.note(f"{titles} lines above the headings are not read")
    headings, separator = first_row(text)
    if not any(headings):
        raise findings.error("is empty; the first line should name the columns")
    headings = unique(headings, findings, "")
    try:
        frame = pl.read_csv(
            io.BytesIO(text.encode()),
            separator=separator,
            has_header=False,
            skip_rows=1,
            new_columns=headings,
            schema=dict.fromkeys(headings, pl.String),
            truncate_ragged_lines=False,
        )
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame(
            {heading: [] for heading in headings}, schema=dict.fromkeys(headings, pl.String)
        )
    except pl.exceptions.PolarsError as error:
        raise findings.error(f"is no CSV ({str(error).splitlines()[0]})") from error
    return Table(
        headings, frame, findings, decimal_comma=separator == ";", first=2 + above + titles
    )


def read_sheets(
    path: Path, findings: Findings, wanted: Sequence[str], belongs: Belongs
) -> dict[str, Table]:
    """The sheets of a workbook that are ``wanted`` and there, hidden or not.

    ``belongs``: whether a row is that of the headings; rows above it are skipped, with a note.
    Raises PlanDataError.
    """
    import fastexcel  # noqa: PLC0415  only who reads a workbook needs it

    try:
        book = fastexcel.read_excel(path.read_bytes())  # whatever its name ends in
        names = {normal(name): name for name in book.sheet_names}
        tables = {}
        for sheet in wanted:
            name = names.get(normal(sheet))
            if name is not None:
                tables[sheet] = _sheet(book, name, findings, belongs)
    except fastexcel.FastExcelError as error:
        raise findings.error(f"is no workbook ({str(error).splitlines()[0]})") from error
    if not tables:
        raise findings.error(
            f"has no sheet {' or '.join(wanted)}; "
            f"its sheets are {name_some(list(names.values()), 12)}"
        )
    return tables


def _sheet(book: Any, name: str, findings: Findings, belongs: Belongs) -> Table:
    where = f"sheet {name}"
    start = book.load_sheet(name, header_row=None, n_rows=_TITLE_ROWS, dtypes="string")
    rows = [[(cell or "").strip() for cell in row] for row in start.to_polars().rows()]
    header = next((number for number, row in enumerate(rows) if belongs(row)), 0)
    # A sheet's rows are counted from its first that is not empty.
    frame = book.load_sheet(name, header_row=header, dtypes="string").to_polars()
    if header:
        findings.note(f"{header} rows above the headings are not read", where)
    headings = [heading.strip() for heading in frame.columns]
    frame.columns = headings
    return Table(headings, frame, findings, where=where, first=header + 2)


def unique(headings: list[str], findings: Findings, where: str) -> list[str]:
    """Headings made distinct: the second "Host" becomes "Host (2)"."""
    seen: dict[str, int] = {}
    out = []
    for heading in headings:
        seen[heading] = seen.get(heading, 0) + 1
        out.append(heading if seen[heading] == 1 else f"{heading} ({seen[heading]})")
    twice = [heading for heading, times in seen.items() if times > 1 and heading]
    if twice:
        findings.note(f"columns named twice, the first one counts: {name_some(twice)}", where)
    return out


__all__ = [
    "PlanDataError",
    "Table",
    "after_titles",
    "first_row",
    "is_total",
    "normal",
    "read_csv",
    "read_sheets",
    "read_text",
]
