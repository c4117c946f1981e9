# SPDX-License-Identifier: Apache-2.0
"""Columns chosen on the command line, and the table of VMs they make: for our hosts and QEMU's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from rich.table import Table

from .errors import UsageError

T = TypeVar("T")


def columns_named(text: str, known: Mapping[str, T]) -> list[T] | None:
    """Columns by their names, separated by commas, in any case; None for no text.

    Raises UsageError for an unknown one.
    """
    if not text:
        return None
    by_name = {name.upper(): column for name, column in known.items()}
    chosen = []
    for name in text.split(","):
        column = by_name.get(name.strip().upper())
        if column is None:
            raise UsageError(f"--columns: no column {name.strip()}; there are {','.join(known)}")
        chosen.append(column)
    return chosen


def table_of(
    names: Iterable[str], text_columns: Collection[str], rows: Iterable[tuple[Sequence[str], str]]
) -> Table:
    """A table of VMs: column names, which of them are text, and each row's cells and style."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name in text_columns else "right", no_wrap=True)
    for cells, style in rows:
        table.add_row(*cells, style=style)
    return table
