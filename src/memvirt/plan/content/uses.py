# SPDX-License-Identifier: Apache-2.0
"""What Linux guests use their pages for, beside what the pages are: counted together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memvirt.plan.dumps.dump import Dump
from memvirt.plan.executor import Executor, Progress
from memvirt.plan.linux.classify import FoundUses, UsesTask, find_uses
from memvirt.plan.linux.page_use import PageUse

from .tasks import PPN_BITS, PPN_MASK, Fingerprints

Array = np.ndarray[Any, Any]


class PageUses:
    """The use of each page of many dumps. ``found``: one for each dump."""

    def __init__(self, dumps: Sequence[Dump], found: Sequence[FoundUses]) -> None:
        self._dumps, self.found = dumps, found

    @classmethod
    def find(
        cls, dumps: Sequence[Dump], paths: Sequence[Path], prints: Sequence[Fingerprints],
        executor: Executor, report: Progress,
    ) -> PageUses:  # fmt: skip
        """Look for a kernel in each dump and read its memory map. Raises DumpError."""
        texts: list[list[int]] = [[] for _ in dumps]
        for part in prints:
            texts[part.dump] += part.kernel_texts
        tasks = [UsesTask(path, tuple(pages)) for path, pages in zip(paths, texts, strict=True)]
        return cls(dumps, executor.map(find_uses, tasks, report))

    def known(self, dump: int) -> bool:
        """True if the uses of that dump's pages were found."""
        return bool(self.found[dump].release)

    def of(self, numbers: Array) -> Array:
        """PageUse of pages by number, in any order."""
        out = np.full(numbers.size, PageUse.UNKNOWN, np.uint8)
        order = np.argsort(numbers, kind="stable")
        dumps = (numbers[order] >> np.uint64(PPN_BITS)).astype(np.int64)
        bounds = np.searchsorted(dumps, np.arange(len(self._dumps) + 1))
        for dump, uses in enumerate(self.found):
            rows = order[bounds[dump] : bounds[dump + 1]]
            if uses.release and rows.size:
                ppns = self._dumps[dump].ppns(0, self._dumps[dump].pages)
                mine = (numbers[rows] & np.uint64(PPN_MASK)).astype(np.int64)
                out[rows] = uses.uses[np.searchsorted(ppns, mine)]
        return out

    def totals(self, dump: int) -> dict[str, int]:
        """Pages of each use of one dump, by its name in small letters; empty if unknown."""
        if not self.known(dump):
            return {}
        counts = np.bincount(self.found[dump].uses, minlength=len(PageUse))
        return {use.name.lower(): int(counts[use]) for use in PageUse if counts[use]}

    def count(self, pieces: Sequence[tuple[Array, Array]], classes: int) -> Array:
        """Pages by use and class, shape (uses, classes), of all dumps whose uses are known.

        ``pieces``: (numbers, classes) of all pages but those of class 0, zero pages, which are what
        is left of each use."""
        out = np.zeros((len(PageUse), classes), np.int64)
        for dump, uses in enumerate(self.found):
            if self.known(dump):
                out[:, 0] += np.bincount(uses.uses, minlength=len(PageUse))
        for numbers, kinds in pieces:
            uses_of_them = self.of(numbers)
            known = uses_of_them != PageUse.UNKNOWN
            np.add.at(out, (uses_of_them[known], kinds[known].astype(np.int64)), 1)
            out[:, 0] -= np.bincount(uses_of_them[known], minlength=len(PageUse))
        return out
