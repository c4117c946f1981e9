# SPDX-License-Identifier: Apache-2.0
"""Teacher mode: what a hypervisor does for one small VM, as scenes of a real VMM.

Each scene is what the VMM's own structures hold after a step; what is said of it is made from them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memvirt.address import GuestVirtualAddress, PhysicalPageNumber, PpnArray
from memvirt.mmu.access import READ, WRITE
from memvirt.observe.address_map import AddressMap, map_address
from memvirt.observe.page_classes import frame_classes, guest_classes
from memvirt.vmm.balloon import BalloonedPages
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import PageState

from .lesson_vm import FRAMES, PAGES, VIRTUAL_PAGES, Attempt, LessonVm
from .source import SourceError

_KINDS = {READ: "read", WRITE: "write"}
_TABLE_NOTES = ("root", "PDPT", "PD", "PT")


class Lesson:
    """The scenes so far. ``act`` steps append to them."""

    def __init__(self, paging: PagingMode) -> None:
        self.vm = LessonVm(paging)
        self.paging = paging
        self.scenes: list[dict[str, Any]] = []
        self.words: dict[int, str] = {}  # by PPN: what the guest wrote there, for the picture

    @property
    def table_name(self) -> str:
        return "shadow" if self.paging is PagingMode.SHADOW else "nested"

    def scene(
        self,
        title: str,
        say: str,
        *,
        gva: GuestVirtualAddress | None = None,
        ppn: PhysicalPageNumber | None = None,
    ) -> None:
        """Add the present state. ``gva`` and ``ppn`` are what the step was about."""
        vm, pmap = self.vm, self.vm.vmm.pmap
        maps = [
            map_address(vm.view(), GuestVirtualAddress(page << 12)) for page in range(VIRTUAL_PAGES)
        ]
        if gva is not None and ppn is None:
            ppn = _ppn(maps[gva >> 12].ppn)
        mpn = None if ppn is None else vm.view().frame_of(ppn)
        states = guest_classes(pmap).tolist()
        self.scenes.append(
            {
                "title": title,
                "say": say,
                "virtual": [
                    {"address": hex(page << 12), "now": gva is not None and page == gva >> 12}
                    for page in range(VIRTUAL_PAGES)
                ],
                "physical": [
                    {
                        "ppn": hex(page),
                        "state": states[page],
                        "note": self._note(page),
                        "now": page == ppn,
                    }
                    for page in range(PAGES)
                ],
                "frames": [
                    {"mpn": hex(frame), "state": state, "now": frame == mpn}
                    for frame, state in enumerate(frame_classes(vm.machine).tolist())
                ],
                "arrows": self._arrows(maps),
            }
        )

    def _note(self, ppn: int) -> str:
        return _TABLE_NOTES[ppn] if ppn < len(_TABLE_NOTES) else self.words.get(ppn, "")

    def _arrows(self, maps: list[AddressMap]) -> list[dict[str, Any]]:
        arrows: list[dict[str, Any]] = []
        for page, one in enumerate(maps):
            if one.ppn is None:
                continue
            arrows.append(_arrow("guest", ("virtual", page), ("physical", one.ppn)))
            filled = bool(one.second) and one.second[-1].points_to is not None
            if filled and one.mpn is not None:
                start = (
                    ("virtual", page) if self.paging is PagingMode.SHADOW else ("physical", one.ppn)
                )
                arrows.append(_arrow(self.table_name, start, ("machine", one.mpn)))
        view = self.vm.view()
        for ppn in map(PhysicalPageNumber, range(PAGES)):
            if (mpn := view.frame_of(ppn)) is not None:
                arrows.append(_arrow("pmap", ("physical", ppn), ("machine", mpn)))
        return arrows

    # Steps -------------------------------------------------------------------------------------

    def access(self, gva: GuestVirtualAddress, kind: int, word: str = "") -> Attempt:
        """Two scenes: what the access needs and finds, and what was done for it."""
        vm = self.vm
        before, entries = map_address(vm.view(), gva), vm.entries()
        wish = f"The guest wants to {_KINDS[kind]} at {gva:#x}"
        self.scene(wish, _found(before, self.table_name, kind), gva=gva)
        attempt = vm.attempt(gva, kind)
        after = map_address(vm.view(), gva)
        if word and attempt.machine_address is not None and after.ppn is not None:
            vm.put(attempt, word.encode())
            self.words[after.ppn] = word
        if attempt.fault is not None:
            self.scene(
                "A page fault that is the guest's own",
                f"#PF with error code {attempt.fault:#x} goes to the guest's kernel: only the "
                "guest knows what belongs at this address. The VMM changes nothing.",
                gva=gva,
            )
            return attempt
        done = _done(before, after, attempt, self.table_name)
        same = "changed" if entries != vm.entries() else "the same as before"
        done.append(
            f"The access went to machine address {attempt.machine_address:#x}. "
            f"The guest's own entries are {same}: it noticed nothing."
        )
        self.scene("Who fills it", " ".join(done), gva=gva)
        return attempt

    def map_page(self, gva: GuestVirtualAddress, ppn: PhysicalPageNumber) -> None:
        """The guest's kernel maps a page by itself."""
        attempt = self.vm.edit(gva >> 12, ppn)
        exits = f" On the way: {'; '.join(attempt.exits)}." if attempt.exits else ""
        self.scene(
            f"The guest maps {gva:#x} to PPN {ppn:#x}",
            "Its kernel writes one entry of its page table in PPN 0x3, with a plain store. "
            f"No frame of machine memory was needed for PPN {ppn:#x} yet: it is "
            f"{self.vm.vmm.pmap.state_of(ppn).name.lower()}.{exits}",
            gva=gva,
        )


def _ppn(number: int | None) -> PhysicalPageNumber | None:
    return None if number is None else PhysicalPageNumber(number)


def _arrow(kind: str, start: tuple[str, int], end: tuple[str, int]) -> dict[str, Any]:
    return {"kind": kind, "from": list(start), "to": list(end)}


def _found(found: AddressMap, table: str, kind: int) -> str:
    """What the structures say before an access."""
    if found.ppn is None:
        last = found.guest[-1]
        return (
            f"The guest's tables: the {last.entry_name} at guest-physical {last.address:#x} is "
            f"{last.value:#x}, not present. No PPN, so nothing below it either."
        )
    parts = [f"The guest's tables lead to PPN {found.ppn:#x}."]
    where = "" if found.mpn is None else f" in frame MPN {found.mpn:#x}"
    parts.append(f"The pmap says: {found.state}{where}.")
    missing = next((step for step in found.second if step.points_to is None), None)
    if not found.second:
        parts.append(f"There is no {table} table for this address yet.")
    elif missing is not None:
        parts.append(f"The {table} table ends at its {missing.entry_name}: absent.")
    elif kind == WRITE and found.state == "shared":
        parts.append(f"The {table} entry is there, but read-only: the frame is shared.")
    else:
        parts.append(f"The {table} entry is there: no exit is needed.")
    return " ".join(parts)


def _done(before: AddressMap, after: AddressMap, attempt: Attempt, table: str) -> list[str]:
    """What an access changed, told from the structures before and after it."""
    parts = [f"{text[0].upper()}{text[1:]}." for text in attempt.exits]
    if before.mpn is None and after.mpn is not None:
        parts.append(f"The VMM took frame MPN {after.mpn:#x} for PPN {after.ppn:#x}.")
    elif before.mpn != after.mpn and after.mpn is not None:
        parts.append(
            f"The VMM copied the page: PPN {after.ppn:#x} moved from MPN {before.mpn:#x}, which "
            f"others still use, to a frame of its own, MPN {after.mpn:#x}."
        )
    old = {(step.mpn, step.address): step.value for step in before.second}
    filled = [
        step
        for step in after.second
        if step.points_to is not None and old.get((step.mpn, step.address)) != step.value
    ]
    if filled:
        names = ", ".join(step.entry_name for step in filled)
        parts.append(f"It filled the {table} table: {names}.")
    else:
        parts.append(f"The {table} table was complete already.")
    return parts


def _share(lesson: Lesson, first: PhysicalPageNumber, second: PhysicalPageNumber) -> None:
    """What page sharing finds and does."""
    vmm, free = lesson.vm.vmm, _free(lesson)
    hashes = vmm.hash_pages([first, second])
    mpn = vmm.make_shared(first)
    merged = vmm.share([second], mpn).tolist()
    lesson.scene(
        "The VMkernel shares equal pages",
        f"PPN {first:#x} and PPN {second:#x} hash to {int(hashes[0]):#x} and "
        f"{int(hashes[1]):#x}, and compare equal in full: {len(merged)} page more uses MPN "
        f"{mpn:#x}. Free frames: {free} before, {_free(lesson)} now. Their "
        f"{lesson.table_name} entries are gone, and come back read-only with the next access.",
        ppn=second,
    )


def _balloon(lesson: Lesson, ppn: PhysicalPageNumber) -> None:
    balloon = BalloonedPages(lesson.vm.vmm)
    free = _free(lesson)
    balloon.give_up(PpnArray(np.array([ppn], np.int64)))
    lesson.scene(
        "The balloon takes a page",
        f"The guest's balloon driver allocated PPN {ppn:#x} in the guest, where nobody else uses "
        f"it now, and told the host. Free frames: {free} before, {_free(lesson)} now. The guest "
        "chose the page: it knows best which one it can spare.",
        ppn=ppn,
    )
    balloon.take_back(PpnArray(np.array([ppn], np.int64)))


def _swap(lesson: Lesson, ppn: PhysicalPageNumber) -> None:
    free = _free(lesson)
    lesson.vm.vmm.unmap([ppn])
    state = lesson.vm.vmm.pmap.state_of(ppn)
    lesson.scene(
        "The host takes a page without asking",
        f"PPN {ppn:#x} is {state.name.lower()} now: its content is kept elsewhere. Free frames: "
        f"{free} before, {_free(lesson)} now. The guest's tables still map the page.",
        ppn=ppn,
    )
    if state is not PageState.SWAPPED:
        raise AssertionError(f"PPN {ppn:#x} is {state.name}")


def _free(lesson: Lesson) -> int:
    return int((frame_classes(lesson.vm.machine) == 0).sum())


def lesson(paging: str) -> dict[str, Any]:
    """All scenes for "shadow" or "nested". Raises SourceError."""
    modes = {"shadow": PagingMode.SHADOW, "nested": PagingMode.NESTED}
    if paging not in modes:
        raise SourceError(f'no lesson "{paging}"; there are shadow and nested')
    told = Lesson(modes[paging])
    first, second, third = (GuestVirtualAddress(gva) for gva in (0x4000, 0x5000, 0x6000))
    page, other, spare = (PhysicalPageNumber(ppn) for ppn in (9, 6, 12))
    told.vm.preset(first >> 12, page)
    told.vm.preset(third >> 12, spare)
    told.scene(
        "A VM of 16 pages",
        f"Boxes are pages, arrows are mappings. The guest believes it has PPN 0x0 to 0xf. Its page "
        f"tables stand in PPN 0x0 to 0x3 and map two pages. The machine has {FRAMES} frames; the "
        "pmap says which of them stand behind which guest page. The processor walks "
        + ("shadow tables, from guest virtual straight to machine addresses."
           if told.paging is PagingMode.SHADOW else
           "the guest's tables, and nested tables from guest physical to machine addresses."),
    )  # fmt: skip
    told.access(first, WRITE, "hello")
    told.access(first, READ)
    told.access(second, WRITE)
    told.map_page(second, other)
    told.access(second, WRITE, "hello")
    _share(told, page, other)
    told.access(second, READ)
    told.access(second, WRITE, "world")
    told.access(third, WRITE, "spare")
    _balloon(told, spare)
    del told.words[spare]
    told.access(third, READ)
    _swap(told, other)
    told.access(second, READ)
    told.vm.power_off()
    return {"paging": paging, "scenes": told.scenes}
