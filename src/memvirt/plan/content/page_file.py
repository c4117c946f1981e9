# SPDX-License-Identifier: Apache-2.0
"""The class of every page as Parquet: one row for each page of each dump."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memvirt.output_file import OutputFile
from memvirt.plan.linux.page_use import PageUse

from .analysis import PageClass
from .tasks import PPN_BITS, PPN_MASK

_NAMES = pa.array([kind.name.lower() for kind in PageClass])
_USES = pa.array([use.name.lower() for use in PageUse])
_SCHEMA = pa.schema(
    [
        ("vm", pa.dictionary(pa.int32(), pa.string())),
        ("ppn", pa.int64()),
        ("class", pa.dictionary(pa.int8(), pa.string())),
        ("same_as_vm", pa.dictionary(pa.int32(), pa.string())),
        ("same_as_ppn", pa.int64()),
        ("kept_bytes", pa.int32()),
        ("use", pa.dictionary(pa.int8(), pa.string())),
    ]
)


class PageFile:
    """Writes page classes to ``path``, as an OutputFile; use as a context manager.

    ``same_as`` is the page a page equals or is patched against. Raises OutputFileError.
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        self._names = pa.array(names)
        self._file = OutputFile(path)
        self._writer = pq.ParquetWriter(self._file, _SCHEMA)

    def __enter__(self) -> PageFile:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        try:
            self._writer.close()
            if kind is None:
                self._file.commit()
        finally:
            self._file.discard()

    def __call__(self, pages: Any, classes: Any, references: Any, kept: Any, uses: Any) -> None:
        """A piece: page numbers, classes, references (number plus one, 0: none), bytes kept, what
        Linux uses the pages for."""
        if not pages.size:
            return
        none = references == 0
        other = np.where(none, np.uint64(0), references - np.uint64(not none.all()))
        self._writer.write_table(
            pa.Table.from_arrays(
                [
                    _dictionary(_vm(pages), self._names, np.int32),
                    pa.array((pages & np.uint64(PPN_MASK)).astype(np.int64)),
                    _dictionary(classes, _NAMES, np.int8),
                    _dictionary(_vm(other), self._names, np.int32, none),
                    pa.array((other & np.uint64(PPN_MASK)).astype(np.int64), mask=none),
                    pa.array(kept.astype(np.int32)),
                    _dictionary(uses, _USES, np.int8),
                ],
                schema=_SCHEMA,
            )
        )


def _vm(pages: Any) -> Any:
    return (pages >> np.uint64(PPN_BITS)).astype(np.int64)


def _dictionary(codes: Any, names: Any, kind: Any, mask: Any = None) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(kind), mask=mask), names)
