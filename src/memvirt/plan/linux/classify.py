# SPDX-License-Identifier: Apache-2.0
"""The use of every page of a dump, as a task that any worker can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memvirt.address import PhysicalPageNumber, PpnArray
from memvirt.plan.dumps.detect import open_dump
from memvirt.plan.dumps.dump import Dump

from .kernel import Kernel, find_kernel
from .memory_map import MemoryMap
from .page_use import PageUse
from .vmcoreinfo import KernelUnreadable

Array = np.ndarray[Any, Any]
_ENTRIES = 512
_LOWEST_UNTYPED = 3  # from PUDs up, tables of processes have no type of their own
_MOST_ROOTS = 1 << 20


@dataclass(frozen=True, slots=True)
class UsesTask:
    """``texts``: PPNs of pages that begin as a kernel's VMCOREINFO."""

    path: Path
    texts: tuple[int, ...]


@dataclass(frozen=True)
class FoundUses:
    """``uses``: the PageUse of each page of the dump, by position; empty if ``release`` is, and
    then ``problem`` says why."""

    release: str
    problem: str
    uses: Array


def find_uses(task: UsesTask) -> FoundUses:
    """Raises DumpError."""
    return uses_of_dump(open_dump(task.path), task.texts)


def uses_of_dump(dump: Dump, texts: tuple[int, ...]) -> FoundUses:
    """Raises DumpError."""
    try:
        kernel = find_kernel(dump, [PhysicalPageNumber(ppn) for ppn in texts])
        return FoundUses(kernel.information.release, "", _uses(dump, kernel))
    except KernelUnreadable as error:
        return FoundUses("", str(error), np.zeros(0, np.uint8))


def _uses(dump: Dump, kernel: Kernel) -> Array:
    """Raises KernelUnreadable, DumpError."""
    memory_map = MemoryMap(kernel)
    ppns = dump.ppns(0, dump.pages)
    uses = np.full(dump.pages, PageUse.OUTSIDE, np.uint8)
    roots: list[tuple[int, int]] = []
    for section in memory_map.sections(ppns):
        low, high = np.searchsorted(ppns, (section.first, section.first + section.uses.size))
        uses[low:high] = section.uses[ppns[low:high] - section.first]
        roots += section.roots
    if not np.isin(uses, (PageUse.FREE, PageUse.KERNEL)).any():
        raise KernelUnreadable("its memory map says nothing of the dump's pages")
    _mark_tables(kernel, memory_map, roots[:_MOST_ROOTS], PpnArray(ppns), uses)
    return uses


def _mark_tables(
    kernel: Kernel, memory_map: MemoryMap, roots: list[tuple[int, int]], ppns: PpnArray, uses: Array
) -> None:
    """Mark the page tables that have no type: the kernel's own, and the upper ones of processes."""
    addresses = kernel.addresses
    half = _ENTRIES // 2
    found = [addresses.tables(addresses.root, first=half, end=_ENTRIES, lowest_level=1)]
    tops = []
    for ppn, mapping in roots:
        if memory_map.is_root(ppn, mapping):
            tops.append(ppn)
            found.append(
                addresses.tables(
                    PhysicalPageNumber(ppn), first=0, end=half, lowest_level=_LOWEST_UNTYPED
                )
            )
    tables = np.unique(np.concatenate(found)).astype(np.int64)
    at = np.searchsorted(ppns, tables)
    at = at[(at < uses.size) & (ppns[np.minimum(at, uses.size - 1)] == tables)]
    # What an entry leads to is a table only if the memory map does not say that it is another.
    at = at[(uses[at] == PageUse.KERNEL) | np.isin(ppns[at], tops)]
    uses[at] = PageUse.PAGE_TABLE
