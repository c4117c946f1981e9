# SPDX-License-Identifier: Apache-2.0
"""memvirt's own snapshots: every guest-physical page, wherever the VMM kept it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from memvirt.address import PAGE_BYTES, PhysicalPageNumber, PpnArray
from memvirt.observe.snapshot import SnapshotError, load_snapshot
from memvirt.observe.view import PageUnavailable, VmView

from .dump import DumpError, Pages


class SnapshotDump:
    """A snapshot as a dump."""

    kind = "memvirt snapshot"
    vmcoreinfo = b""

    def __init__(self, view: VmView, path: Path) -> None:
        self._view, self._path = view, path

    @property
    def pages(self) -> int:
        return self._view.pages

    @property
    def registers(self) -> Mapping[str, int]:
        return {name: int(self._view.registers[name]) for name in ("cr0", "cr3", "cr4")}

    def ppns(self, first: int, count: int) -> PpnArray:
        return PpnArray(np.arange(first, first + count, dtype=np.int64))

    def read(self, first: int, count: int) -> Pages:
        try:
            content = b"".join(
                self._view.read_page(PhysicalPageNumber(ppn)) for ppn in range(first, first + count)
            )
        except (PageUnavailable, SnapshotError, IndexError) as error:
            raise DumpError(f"{self._path}: a page is missing ({error})") from error
        return np.frombuffer(content, np.uint8).reshape(-1, PAGE_BYTES)

    def data_ranges(self, first: int, count: int) -> list[tuple[int, int]]:
        return [(first, count)]

    def position(self, ppn: PhysicalPageNumber) -> int:
        return ppn if 0 <= ppn < self.pages else -1


def open_snapshot(path: Path) -> SnapshotDump:
    """Raises DumpError."""
    try:
        return SnapshotDump(load_snapshot(path), path)
    except SnapshotError as error:
        raise DumpError(str(error)) from error
