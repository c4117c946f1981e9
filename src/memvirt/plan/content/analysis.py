# SPDX-License-Identifier: Apache-2.0
"""Analysis of many dumps: runs the tasks, puts every page into one class, sums up the savings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES
from memvirt.machine.similarity import PATCH_HEADER
from memvirt.notebook import html_table
from memvirt.plan.dumps.detect import open_dump
from memvirt.plan.executor import Executor, Progress
from memvirt.plan.linux.page_use import PageUse

from .similar import references
from .tasks import (
    COMPRESSED_SLOTS,
    HALF_PAGE,
    PPN_BITS,
    Counted,
    Fingerprints,
    Measure,
    Measured,
    Partition,
    Stretch,
    count_partition,
    fingerprint,
    measure,
)
from .uses import PageUses

__all__ = ["Analysis", "PageClass", "Savings", "Share", "VmContent", "analyze"]

LIVE_VM = "live VM"  # the kind of a dump that is the copy of one
_STRETCH_PAGES = 1 << 16  # 256 MiB a task
_MEASURE_PAGES = 1 << 14
_PARTITION_PAGES = 1 << 22  # at most so many fingerprints in a partition, 150 MB
Array = np.ndarray[Any, Any]


class PageClass(IntEnum):
    """What a page is, each page exactly one: the first that holds, in this order."""

    ZERO = 0
    EQUAL = 1  # equal to a page with a lower number
    SIMILAR = 2  # a patch of at most half a page against another makes it
    COMPRESSIBLE = 3  # shrinks to a half or less
    OTHER = 4


class Share(StrEnum):
    """Which VMs may share pages with each other."""

    ALL = "all"
    FOLDER = "folder"  # those whose dumps are in one folder
    VM = "vm"  # each only with itself: ESXi's default


@dataclass(frozen=True, slots=True)
class Savings:
    """Pages of machine memory saved, out of those the dumps hold. *together*: pages are shared,
    then similar ones patched, then what is left compressed; each page is counted once."""

    sharing: float
    patching: float
    compression: float
    together: float


@dataclass(frozen=True)
class VmContent:
    """One dump. ``classes``: pages of each class by its name in small letters; ``uses``: pages of
    each use likewise, if the guest's kernel is a Linux whose memory map could be read. Then
    ``linux`` is its release, else ``linux_problem`` says why it is not known."""

    name: str
    path: str
    kind: str
    group: str
    pages: int
    classes: dict[str, int]
    uses: dict[str, int] = field(default_factory=dict)
    linux: str = ""
    linux_problem: str = ""


@dataclass(frozen=True)
class Analysis:
    """The outcome. ``partners``: the pairs of VMs with most content in common, with the pages that
    sharing saves if the two run on one host; ``chance``: of a hash having made two different pages
    equal, anywhere (64-bit hashes are trusted here, as nothing is changed by it). ``uses``: for
    each use of pages by Linux guests, the pages of each class, of the dumps where it is known."""

    vms: tuple[VmContent, ...]
    share: str
    pages: int
    classes: dict[str, int]
    savings: Savings
    partners: tuple[tuple[str, str, int], ...]
    compressible_part: float
    in_use_pages: int
    chance: float
    uses: dict[str, dict[str, int]] = field(default_factory=dict)

    def __repr__(self) -> str:
        saved = self.savings.together
        return f"<Analysis of {len(self.vms)} dumps: {saved:.0f} of {self.pages} pages saved>"

    def _repr_html_(self) -> str:
        """Pages of each dump by class, as a table for notebooks."""
        names = tuple(self.classes)
        rows = ((vm.name, vm.pages, *(vm.classes.get(name) for name in names)) for vm in self.vms)
        return html_table(repr(self)[1:-1], ("dump", "pages", *names), rows)


@dataclass(frozen=True)
class _Pages:
    """All representatives of all partitions, by rising page number, and what was measured."""

    fingerprints: Array
    times: Array
    references: Array
    measured: Measured


OnPages = Callable[[Array, Array, Array, Array, Array], None]


def analyze(
    paths: list[Path], executor: Executor, report: Callable[[str], Progress], *,
    share: Share = Share.ALL, scratch: Path | None = None, on_pages: OnPages | None = None,
    live: Mapping[Path, str] = MappingProxyType({}),
) -> Analysis:  # fmt: skip
    """Analyze dumps. ``on_pages`` gets (page numbers, classes, references, bytes kept, uses) of
    every page, in pieces. ``live``: names of the VMs whose copies are among the dumps. Raises
    DumpError."""
    with tempfile.TemporaryDirectory(prefix="memvirt-analyze-", dir=scratch) as folder:
        return _Analyzer(paths, executor, report, share, Path(folder), live).run(on_pages)


class _Analyzer:
    def __init__(
        self, paths: list[Path], executor: Executor, report: Callable[[str], Progress],
        share: Share, scratch: Path, live: Mapping[Path, str],
    ) -> None:  # fmt: skip
        self.paths = [path.resolve() for path in paths]
        self.executor, self.report, self.share, self.scratch = executor, report, share, scratch
        self.live = {path.resolve(): name for path, name in live.items()}
        self.dumps = [open_dump(path) for path in self.paths]
        self.groups = [self._group(path) for path in self.paths]
        salts = {group: number for number, group in enumerate(sorted(set(self.groups)))}
        self.salts = [salts[group] for group in self.groups]

    def _group(self, path: Path) -> str:
        if self.share is Share.ALL:
            return ""
        if self.share is Share.FOLDER:
            return "live" if path in self.live else path.parent.name
        return self.live.get(path, str(path))

    def run(self, on_pages: OnPages | None) -> Analysis:
        prints = self._fingerprint(on_pages is not None)
        self.uses = PageUses.find(
            self.dumps, self.paths, prints, self.executor, self.report("memory maps")
        )
        counted = self._count(prints)
        pages = self._measure(counted)
        classes = self._classes(pages)
        per_vm = self._tally(prints, counted, pages, classes)
        if on_pages is not None:
            self._hand_out(on_pages, prints, counted, pages, classes)
        return self._sum_up(prints, counted, pages, classes, per_vm)

    def _fingerprint(self, list_zeroes: bool) -> list[Fingerprints]:
        total = sum(dump.pages for dump in self.dumps)
        partitions = 1 << max(int(total // _PARTITION_PAGES).bit_length(), 1)
        tasks = [
            Stretch(
                number, path, self.salts[number], first, min(_STRETCH_PAGES, dump.pages - first),
                partitions, self.scratch, list_zeroes,
            )
            for number, (path, dump) in enumerate(zip(self.paths, self.dumps, strict=True))
            for first in range(0, dump.pages, _STRETCH_PAGES)
        ]  # fmt: skip
        self.partitions = partitions
        return self.executor.map(fingerprint, tasks, self.report("hashing"))

    def _count(self, prints: list[Fingerprints]) -> list[Counted]:
        tasks = [
            Partition(
                number,
                tuple((p.file, int(p.bounds[number]), int(p.bounds[number + 1])) for p in prints),
                len(self.dumps),
            )
            for number in range(self.partitions)
        ]
        return self.executor.map(count_partition, tasks, self.report("comparing"))

    def _measure(self, counted: list[Counted]) -> _Pages:
        prints = np.concatenate([part.representatives for part in counted])
        times = np.concatenate([part.times for part in counted])
        order = np.argsort(prints["page"], kind="stable")
        prints, times = prints[order], times[order]
        found = references(prints["page"], prints["keys"], prints["salt"])
        tasks = [
            Measure(
                prints["page"][at : at + _MEASURE_PAGES], found[at : at + _MEASURE_PAGES],
                tuple(self.paths),
            )
            for at in range(0, prints.size, _MEASURE_PAGES)
        ]  # fmt: skip
        parts = self.executor.map(measure, tasks, self.report("measuring"))
        measured = Measured(
            *(
                np.concatenate([getattr(part, name) for part in parts] or [np.zeros(0, np.int64)])
                for name in ("compressed", "patch", "reference")
            )
        )
        return _Pages(prints, times, found, measured)

    def _classes(self, pages: _Pages) -> Array:
        """Classes of the representatives.

        What others are patched against stays whole, so a reference is used only if its patches
        save more than compressing all of them, and itself, would.
        """
        measured, numbers = pages.measured, pages.fingerprints["page"]
        slots = slot_bytes(measured.compressed)
        gain = np.where(measured.patch <= HALF_PAGE, slots - measured.patch, 0)
        candidates = np.flatnonzero(gain > 0)
        reference = np.searchsorted(numbers, measured.reference[candidates] - np.uint64(1))
        gained = np.bincount(reference, weights=gain[candidates], minlength=numbers.size)
        worth = gained > PAGE_BYTES - slots
        similar = candidates[worth[reference]]
        classes = np.where(slots <= HALF_PAGE, PageClass.COMPRESSIBLE, PageClass.OTHER)
        classes[similar] = PageClass.SIMILAR
        classes[reference[worth[reference]]] = PageClass.OTHER
        return classes.astype(np.uint8)

    def _tally(
        self, prints: list[Fingerprints], counted: list[Counted], pages: _Pages, classes: Array
    ) -> Array:
        """Pages of each class of each dump: shape (dumps, classes)."""
        out = np.zeros((len(self.dumps), len(PageClass)), np.int64)
        for part in prints:
            out[part.dump, PageClass.ZERO] += part.zeroes
        for found in counted:
            dumps = (found.duplicates >> np.uint64(PPN_BITS)).astype(np.int64)
            out[:, PageClass.EQUAL] += np.bincount(dumps, minlength=len(self.dumps))
        dumps = (pages.fingerprints["page"] >> np.uint64(PPN_BITS)).astype(np.int64)
        np.add.at(out, (dumps, classes.astype(np.int64)), 1)
        return out

    def _hand_out(
        self, on_pages: OnPages, prints: list[Fingerprints], counted: list[Counted],
        pages: _Pages, classes: Array,
    ) -> None:  # fmt: skip
        def constant(like: Array, value: int, kind: Any) -> Array:
            return np.full(like.size, value, kind)

        def give(numbers: Array, classes: Array, reference: Array, kept: Array) -> None:
            on_pages(numbers, classes, reference, kept, self.uses.of(numbers))

        for part in prints:
            zero = part.zero_pages
            give(zero, constant(zero, PageClass.ZERO, np.uint8),
                 constant(zero, 0, np.uint64), constant(zero, 0, np.int32))  # fmt: skip
        for found in counted:
            equal = found.duplicates
            give(equal, constant(equal, PageClass.EQUAL, np.uint8),
                 found.same_as + np.uint64(1), constant(equal, 0, np.int32))  # fmt: skip
        measured = pages.measured
        kept = np.full(classes.size, PAGE_BYTES, np.int32)
        similar, small = classes == PageClass.SIMILAR, classes == PageClass.COMPRESSIBLE
        kept[similar] = measured.patch[similar]
        kept[small] = slot_bytes(measured.compressed[small])
        reference = np.where(similar, measured.reference, np.uint64(0))
        give(pages.fingerprints["page"], classes, reference, kept)

    def _sum_up(
        self, prints: list[Fingerprints], counted: list[Counted], pages: _Pages, classes: Array,
        per_vm: Array,
    ) -> Analysis:  # fmt: skip
        measured, total = pages.measured, int(per_vm.sum())
        zeroes, equal = int(per_vm[:, PageClass.ZERO].sum()), int(per_vm[:, PageClass.EQUAL].sum())
        # One page of zeroes stays for each salt that has any.
        with_zero = {self.salts[part.dump] for part in prints if part.zeroes}
        shared = zeroes - len(with_zero) + equal
        slots = slot_bytes(measured.compressed)
        similar, small = classes == PageClass.SIMILAR, classes == PageClass.COMPRESSIBLE
        patched = float((PAGE_BYTES - measured.patch[measured.patch <= HALF_PAGE]).sum())
        compressed_alone = float(((PAGE_BYTES - slots) * pages.times).sum())
        compressed_alone += zeroes * (PAGE_BYTES - COMPRESSED_SLOTS[0])
        together = float((PAGE_BYTES - measured.patch[similar]).sum())
        together += float((PAGE_BYTES - slots[small]).sum())
        savings = Savings(
            sharing=float(shared),
            patching=(shared * (PAGE_BYTES - PATCH_HEADER) + patched) / PAGE_BYTES,
            compression=compressed_alone / PAGE_BYTES,
            together=shared + together / PAGE_BYTES,
        )
        names = self._names()
        vms = tuple(
            VmContent(
                names[n], "" if self.paths[n] in self.live else str(self.paths[n]),
                LIVE_VM if self.paths[n] in self.live else self.dumps[n].kind, self.groups[n],
                self.dumps[n].pages, _by_name(per_vm[n]), self.uses.totals(n),
                self.uses.found[n].release, self.uses.found[n].problem,
            )
            for n in range(len(names))
        )  # fmt: skip
        distinct = int(measured.compressed.size)
        compressible = float((measured.compressed <= HALF_PAGE).mean()) if distinct else 0.0
        return Analysis(
            vms, self.share.value, total, _by_name(per_vm.sum(axis=0)), savings,
            self._partners(counted, names), compressible, total - zeroes,
            float(distinct) ** 2 / 2.0**65, self._by_use(counted, pages, classes),
        )  # fmt: skip

    def _by_use(
        self, counted: list[Counted], pages: _Pages, classes: Array
    ) -> dict[str, dict[str, int]]:
        pieces = [(pages.fingerprints["page"], classes)]
        for part in counted:
            equal = np.full(part.duplicates.size, PageClass.EQUAL, np.uint8)
            pieces.append((part.duplicates, equal))
        counts = self.uses.count(pieces, len(PageClass))
        return {use.name.lower(): _by_name(counts[use]) for use in PageUse if counts[use].any()}

    def _names(self) -> list[str]:
        """The files' names without ending; with their folder where two are alike."""
        stems = [self.live.get(path, path.stem) for path in self.paths]
        alike = {path for path, stem in zip(self.paths, stems, strict=True)
                 if stems.count(stem) > 1 and path not in self.live}  # fmt: skip
        return [
            f"{path.parent.name}/{path.name}" if path in alike else stem
            for stem, path in zip(stems, self.paths, strict=True)
        ]

    def _partners(
        self, counted: list[Counted], names: list[str]
    ) -> tuple[tuple[str, str, int], ...]:
        both = np.sum([part.together for part in counted], axis=0)
        pairs = [
            (names[a], names[b], int(both[a, b]))
            for a in range(len(names))
            for b in range(a + 1, len(names))
            if both[a, b]
        ]
        return tuple(sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1])))


def slot_bytes(sizes: Array) -> Array:
    """What the compression cache takes for pages of these compressed sizes (a page if refused)."""
    quarter, half = COMPRESSED_SLOTS
    return np.where(sizes <= quarter, quarter, np.where(sizes <= half, half, PAGE_BYTES))


def _by_name(counts: Array) -> dict[str, int]:
    return {kind.name.lower(): int(counts[kind]) for kind in PageClass}
