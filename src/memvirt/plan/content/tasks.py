# SPDX-License-Identifier: Apache-2.0
"""The steps of an analysis, as tasks that any worker can do.

1. ``fingerprint``: hash a stretch of one dump; pages of zeroes are only counted. The fingerprints
   go to a file, sorted into partitions by hash (the exchange: step 2 reads one partition of all).
2. ``count_partition``: all pages of one part of the hashes: equal pages are found, each content
   gets a representative, the page with the lowest number.
3. ``measure``: for representatives, compressed size and the size of a patch against a similar page.

A page has a number: its dump's above 40 bits of physical page number. Files go to a scratch folder
that all workers see; a task that is done again writes the same file with the same content.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np

from memvirt.address import PAGE_BYTES, PpnArray
from memvirt.machine.content import hash_pages, zero_pages
from memvirt.machine.similarity import block_keys, patch_sizes
from memvirt.plan.dumps.detect import open_dump
from memvirt.plan.linux.vmcoreinfo import kernel_texts

PPN_BITS = 40
PPN_MASK = (1 << PPN_BITS) - 1
HALF_PAGE = PAGE_BYTES // 2
COMPRESSED_SLOTS = (PAGE_BYTES // 4, PAGE_BYTES // 2)  # as the compression cache keeps pages
_READ_PAGES = 4096  # at a time: 16 MiB
# Blocks (of 64) that are compared to find similar pages: drawn once, as Difference Engine did.
BLOCK_PLACES = (11, 38)

FINGERPRINT = np.dtype([("salt", "<u4"), ("hash", "<u8"), ("page", "<u8"), ("keys", "<u8", (2,))])
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Stretch:
    """``count`` pages from position ``first`` of dump number ``dump``."""

    dump: int
    path: Path
    salt: int
    first: int
    count: int
    partitions: int
    scratch: Path
    list_zeroes: bool


@dataclass(frozen=True)
class Fingerprints:
    """What became of a stretch: the file of its pages that are not zero, and where each partition
    begins in it. ``kernel_texts``: PPNs of pages that begin as a Linux kernel's VMCOREINFO."""

    dump: int
    pages: int
    zeroes: int
    file: Path
    bounds: Array
    zero_pages: Array  # numbers; empty unless asked for
    kernel_texts: tuple[int, ...] = ()


def fingerprint(task: Stretch) -> Fingerprints:
    """Hash a stretch. Raises DumpError."""
    dump = open_dump(task.path)
    parts, zeroes = [], []
    texts: list[int] = []
    for first, count in dump.data_ranges(task.first, task.count):
        for at in range(first, first + count, _READ_PAGES):
            some = min(_READ_PAGES, first + count - at)
            content = dump.read(at, some)
            numbers = (dump.ppns(at, some) | task.dump << PPN_BITS).astype(np.uint64)
            texts += (numbers[kernel_texts(content)] & np.uint64(PPN_MASK)).tolist()
            zero = zero_pages(content, np.arange(some))
            rows = np.flatnonzero(~zero)
            found = np.zeros(rows.size, FINGERPRINT)
            found["salt"], found["page"] = task.salt, numbers[rows]
            found["hash"] = hash_pages(content, rows)
            found["keys"] = block_keys(content, BLOCK_PLACES)[rows]
            parts.append(found)
            if task.list_zeroes:
                zeroes.append(numbers[zero])
    pages = np.concatenate(parts) if parts else np.zeros(0, FINGERPRINT)
    if task.list_zeroes:  # holes too
        every = (dump.ppns(task.first, task.count) | task.dump << PPN_BITS).astype(np.uint64)
        zeroes = [np.setdiff1d(every, pages["page"], assume_unique=True)]
    part = partition_of(pages["hash"], task.partitions)
    order = np.argsort(part, kind="stable")
    file = task.scratch / f"pages-{task.dump}-{task.first}.npy"
    _save(file, pages[order])
    return Fingerprints(
        task.dump, task.count, task.count - int(pages.size), file,
        np.searchsorted(part[order], np.arange(task.partitions + 1)),
        np.concatenate(zeroes) if zeroes else np.zeros(0, np.uint64), tuple(texts),
    )  # fmt: skip


def partition_of(hashes: Array, partitions: int) -> Array:
    """Partitions (a power of two) by the top bits of a hash."""
    bits = partitions.bit_length() - 1
    return (hashes >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(hashes.size, int)


def _save(file: Path, array: Array) -> None:
    """All or nothing: a worker may die at any moment, and another do the same task again."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    with partial.open("wb") as out:
        np.save(out, array)
    partial.replace(file)


@dataclass(frozen=True)
class Partition:
    """One part of the hashes, in the files of all stretches: (file, from, to)."""

    number: int
    slices: tuple[tuple[Path, int, int], ...]
    dumps: int


@dataclass(frozen=True)
class Counted:
    """Equal pages of a partition.

    ``representatives``: FINGERPRINTs, in order of page number; ``times``: how many pages have each
    one's content; ``duplicates``: numbers of the others, ``same_as`` the representative of each.
    ``together``: shape (dumps, dumps): contents that both dumps have (what sharing saves if just
    these two are on a host); on the diagonal, duplicates inside one dump.
    """

    representatives: Array
    times: Array
    duplicates: Array
    same_as: Array
    together: Array


def count_partition(task: Partition) -> Counted:
    """Find equal pages: a sort by (salt, hash, page)."""
    arrays = [np.load(f, mmap_mode="r")[a:b] for f, a, b in task.slices if b > a]
    pages = np.concatenate(arrays) if arrays else np.zeros(0, FINGERPRINT)
    order = np.lexsort((pages["page"], pages["hash"], pages["salt"]))
    salt, hashes, numbers = pages["salt"][order], pages["hash"][order], pages["page"][order]
    new = np.ones(pages.size, bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (salt[1:] != salt[:-1])
    group = np.cumsum(new) - 1
    heads = np.flatnonzero(new)
    representatives = pages[order[heads]]
    by_page = np.argsort(representatives["page"], kind="stable")
    dump = (numbers >> np.uint64(PPN_BITS)).astype(np.int64)
    return Counted(
        representatives[by_page],
        np.bincount(group, minlength=heads.size)[by_page] if heads.size else np.zeros(0, int),
        numbers[~new],
        numbers[heads][group[~new]] if heads.size else numbers[~new],
        _together(group, dump, task.dumps),
    )


def _together(group: Array, dump: Array, dumps: int) -> Array:
    """For each two dumps, contents that both have; on the diagonal, copies inside one."""
    out = np.zeros((dumps, dumps), np.int64)
    if not group.size:
        return out
    pair = group.astype(np.int64) * dumps + dump
    unique, times = np.unique(pair, return_counts=True)
    group_of, dump_of = unique // dumps, unique % dumps
    np.add.at(out, (dump_of, dump_of), times - 1)
    size = np.bincount(group_of)
    starts = np.cumsum(size) - size
    for members in np.unique(size[size > 1]).tolist():
        rows = starts[size == members][:, None] + np.arange(members)
        have = dump_of[rows]  # shape (contents, members), rising in each row
        for a in range(members):
            for b in range(a + 1, members):
                np.add.at(out, (have[:, a], have[:, b]), 1)
    return out


@dataclass(frozen=True)
class Measure:
    """Representatives to measure, by page number, each with up to two pages to patch against (0:
    none, references are numbers plus one)."""

    pages: Array
    references: Array  # shape (pages, 2)
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Measured:
    """Bytes: compressed (whole page if it does not shrink), of the better patch (a page if none is
    at most half of one), and against which reference (number plus one, 0: none)."""

    compressed: Array
    patch: Array
    reference: Array


def measure(task: Measure) -> Measured:
    """Compress and patch. Raises DumpError."""
    content = _read_pages(task.pages, task.paths)
    compressed = np.array(
        [min(len(lz4.block.compress(page, store_size=False)), PAGE_BYTES) for page in content],
        np.int32,
    )
    patch = np.full(task.pages.size, PAGE_BYTES, np.int32)
    chosen = np.zeros(task.pages.size, np.uint64)
    for column in range(task.references.shape[1]):
        rows = np.flatnonzero(task.references[:, column])
        if rows.size == 0:
            continue
        numbers = task.references[rows, column]
        references = _read_pages(numbers - np.uint64(1), task.paths)
        sizes = patch_sizes(np.ascontiguousarray(content[rows]), references, HALF_PAGE)
        better = (sizes <= HALF_PAGE) & (sizes < patch[rows])
        patch[rows[better]], chosen[rows[better]] = sizes[better], numbers[better]
    return Measured(compressed, patch, chosen)


def _read_pages(numbers: Array, paths: tuple[Path, ...]) -> Array:
    """Content of pages by number, in any order: read in order, neighbours at once."""
    out = np.empty((numbers.size, PAGE_BYTES), np.uint8)
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    dumps = (ordered >> np.uint64(PPN_BITS)).astype(np.int64)
    for number in np.unique(dumps).tolist():
        dump = open_dump(paths[number])
        rows = order[dumps == number]
        ppns = PpnArray((numbers[rows] & np.uint64(PPN_MASK)).astype(np.int64))
        at = np.array([dump.position(ppn) for ppn in ppns.tolist()], np.int64)
        starts = np.flatnonzero(np.concatenate(([True], np.diff(at) != 1)))
        for start, end in zip(starts, [*starts[1:], at.size], strict=True):
            out[rows[start:end]] = dump.read(int(at[start]), int(end - start))
    return out
