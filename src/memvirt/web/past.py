# SPDX-License-Identifier: Apache-2.0
"""What is known of pages and mappings at a moment that is over.

Kept are, of each frame: the class of every page and which machine frame backed it. Kept as well is
what pages asked about, when they did: what a guest's tables mapped, and walks entry by entry. Where
nothing was kept, the answer says so. Bytes of pages are not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memvirt.address import PAGE_SHIFT

from .source import NothingToSay, SourceError
from .wire import Classes, Parts

_MOST_MAPPINGS = 512
_MOST_RUNS = 100_000  # runs of mapped pages that are kept, of all answers together
_MOST_ANSWERS, _MOST_WALKS = 20_000, 4000
FRAMES = "mpn:"  # name of the part with the frames of a VM's pages: MPN plus one, 0 for none

Run = list[Any]  # as ``questions.run_json`` makes it


def frames_part(frames: np.ndarray[tuple[int], np.dtype[np.int32]]) -> Classes:
    """The frames of a VM's pages, -1 for none, as bytes that a history keeps: four a page."""
    return (frames + 1).astype("<u4").view(np.uint8)


def _frames(part: Classes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return part.view("<u4").astype(np.int64) - 1


@dataclass(frozen=True, slots=True)
class _Mapped:
    """An answer, and its runs if no answer before it had the same."""

    answer: dict[str, Any]
    runs: int


@dataclass(slots=True)
class Asked:
    """Answers by the round in which they were true, oldest first, the newest of them bounded."""

    _virtual: OrderedDict[tuple[int, int], _Mapped] = field(default_factory=OrderedDict)
    _newest: dict[int, dict[str, Any]] = field(default_factory=dict)  # by VM
    _walks: OrderedDict[tuple[int, int, int], dict[str, Any]] = field(default_factory=OrderedDict)
    _runs: int = 0

    def keep_virtual(self, rounds: int, answer: dict[str, Any]) -> None:
        """What a VM's tables mapped in round ``rounds``, as ``questions.virtual_answer``."""
        vm_id = int(answer["vm"])
        if (rounds, vm_id) in self._virtual:
            return
        before = self._newest.get(vm_id)
        if before is not None and before["digest"] == answer["digest"]:
            self._virtual[rounds, vm_id] = _Mapped(before, 0)
        else:
            self._virtual[rounds, vm_id] = _Mapped(answer, len(answer["runs"]))
            self._newest[vm_id] = answer
        self._runs += self._virtual[rounds, vm_id].runs
        while len(self._virtual) > 1 and (
            self._runs > _MOST_RUNS or len(self._virtual) > _MOST_ANSWERS
        ):
            self._runs -= self._virtual.popitem(last=False)[1].runs

    def keep_walk(self, rounds: int, vm_id: int, answer: dict[str, Any]) -> None:
        """A walk of round ``rounds``, as ``questions.map_answer``."""
        self._walks[rounds, vm_id, int(answer["gva"], 16)] = answer
        while len(self._walks) > _MOST_WALKS:
            self._walks.popitem(last=False)

    def virtual(self, rounds: int, vm_id: int) -> tuple[int, dict[str, Any]] | None:
        """The newest of a VM that is not newer than ``rounds``, and its round."""
        kept = [at for at, vm in self._virtual if vm == vm_id and at <= rounds]
        return (max(kept), self._virtual[max(kept), vm_id].answer) if kept else None

    def walk(self, rounds: int, vm_id: int, gva: int) -> tuple[int, dict[str, Any]] | None:
        """As ``virtual``, for the walk of one address."""
        kept = [at for at, vm, of in self._walks if (vm, of) == (vm_id, gva) and at <= rounds]
        return (max(kept), self._walks[max(kept), vm_id, gva]) if kept else None


@dataclass(frozen=True, slots=True)
class Moment:
    """A frame of the history: its header, its parts with the frames of pages, and what was asked.

    ``names`` are those of the guest classes.
    """

    header: dict[str, Any]
    parts: Parts
    asked: Asked
    names: list[str]

    @property
    def round(self) -> int:
        return int(self.header["round"])

    def _row(self, vm_id: int) -> dict[str, Any]:
        for row in self.header["vms"]:
            if row["vm_id"] == vm_id and f"{FRAMES}{vm_id}" in self.parts:
                return dict(row)
        raise NothingToSay(f"VM {vm_id} had not been started, or had ended, at that moment")

    def _runs(self, vm_id: int) -> Iterable[Run]:
        kept = self.asked.virtual(self.round, vm_id)
        return [] if kept is None else kept[1]["runs"]

    def virtual(self, vm_id: int) -> dict[str, Any]:
        """What the VM's tables mapped, with the round of which it is known. Raises SourceError."""
        row = self._row(vm_id)
        kept = self.asked.virtual(self.round, vm_id)
        if kept is None:
            nothing: dict[str, Any] = {"vm": vm_id, "runs": [], "complete": True}
            return nothing | {"past": f"not recorded: nobody looked at {row['name']} then"}
        return kept[1] | {"past": f"as of round {kept[0]}"}

    def page(self, vm_id: int, ppn: int) -> dict[str, Any]:
        """As ``questions.page_answer``, without bytes. Raises SourceError."""
        self._row(vm_id)
        frames = _frames(self.parts[f"{FRAMES}{vm_id}"])
        if not 0 <= ppn < frames.size:
            raise SourceError(f"PPN {ppn:#x} is beyond the VM's memory")
        mpn = int(frames[ppn])
        runs = self._runs(vm_id)
        return {
            "vm": vm_id,
            "ppn": ppn,
            "gpa": hex(ppn << PAGE_SHIFT),
            "state": self.names[int(self.parts[f"vm:{vm_id}"][ppn])],
            "mpn": None if mpn < 0 else mpn,
            "addresses": [hex(gva) for gva in _addresses(runs, ppn)],
            "complete": True,
            "unavailable": "The bytes of a moment that is over are not kept.",
        }

    def frame(self, mpn: int) -> dict[str, Any]:
        """As ``questions.frame_answer``. Raises SourceError."""
        if not 0 <= mpn < self.parts["machine"].size:
            raise SourceError(f"MPN {mpn:#x} is beyond machine memory")
        mappings: list[dict[str, Any]] = []
        total = 0
        for name, part in self.parts.items():
            if not name.startswith(FRAMES):
                continue
            vm_id = int(name.removeprefix(FRAMES))
            ppns = np.flatnonzero(_frames(part) == mpn).tolist()
            total += len(ppns)
            runs = self._runs(vm_id) if ppns else []
            for ppn in ppns[: max(_MOST_MAPPINGS - len(mappings), 0)]:
                addresses = [hex(gva) for gva in _addresses(runs, ppn)]
                mappings.append({"vm": vm_id, "ppn": ppn, "addresses": addresses})
        return {"mpn": mpn, "mappings": mappings, "total": total}

    def map(self, vm_id: int, gva: int) -> dict[str, Any]:
        """As ``questions.map_answer``: entries of tables only if the same walk was asked for then.

        Raises SourceError if nothing is known of the address at that moment.
        """
        row, ppn = self._row(vm_id), _ppn(self._runs(vm_id), gva)
        kept = self.asked.walk(self.round, vm_id, gva)
        if ppn is None and kept is not None and kept[1]["ppn"] is not None:
            ppn = int(kept[1]["ppn"], 16)
        if ppn is None:
            raise NothingToSay(f"No mapping of {gva:#x} was recorded at that moment.")
        page = self.page(vm_id, ppn)
        mpn = None if page["mpn"] is None else hex(page["mpn"])
        if kept is not None and (kept[1]["ppn"], kept[1]["mpn"]) == (hex(ppn), mpn):
            return kept[1] | {
                "state": page["state"],
                "note": f"Entries as they were in round {kept[0]}, when they were looked at.",
            }
        return {
            "gva": hex(gva),
            "paging": row["paging"],
            "guest_mode": "",
            "guest": [],
            "ppn": hex(ppn),
            "state": page["state"],
            "pmap_flags": [],
            "mpn": mpn,
            "slot": None,
            "second": [],
            "machine_address": None if mpn is None else hex(page["mpn"] << PAGE_SHIFT),
            "note": "Walk not recorded at that moment: entries of tables are kept only of pages "
            "that were selected then. What maps to what is.",
        }


def _addresses(runs: Iterable[Run], ppn: int) -> list[int]:
    return [
        int(gva, 16) + (ppn - first << PAGE_SHIFT)
        for gva, first, pages, *_ in runs
        if first <= ppn < first + pages
    ]


def _ppn(runs: Iterable[Run], gva: int) -> int | None:
    for start, first, pages, *_ in runs:
        offset = gva - int(start, 16) >> PAGE_SHIFT
        if 0 <= offset < pages:
            return int(first) + offset
    return None
