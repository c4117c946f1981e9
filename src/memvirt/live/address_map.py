# SPDX-License-Identifier: Apache-2.0
"""Every step from an address of a live guest to the frame of the host behind it, and back.

gVA -> the guest's own table entries -> gPA -> slot and RAM block -> host virtual address -> MPN
(the host kernel's page frame number) with what that kernel says of the frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from memvirt.address import (
    PAGE_BYTES,
    PAGE_SHIFT,
    GuestPhysicalAddress,
    GuestVirtualAddress,
    HostVirtualAddress,
    MachinePageNumber,
    PhysicalPageNumber,
    PpnArray,
    physical_page_number,
)
from memvirt.mmu.entry import ENTRY_NAMES, MODE_NAMES, MODE_OFF
from memvirt.notebook import html_table, one_line

from .kernel_pages import PAGEMAP_FRAME, PAGEMAP_PRESENT, KernelPages, flag_names
from .page_states import LivePageState
from .vm import LiveVm
from .walk import GuestEntry, GuestTranslation, GuestWalker

__all__ = [
    "FrameView",
    "LiveAddressMap",
    "MappedRange",
    "frame_behind",
    "map_guest_physical",
    "map_live_address",
    "map_range",
    "render_live_map",
]


@dataclass(frozen=True, slots=True)
class FrameView:
    """What the host has behind one guest-physical page."""

    ppn: PhysicalPageNumber
    block: str  # RAM block
    slot_gpa: GuestPhysicalAddress  # first guest-physical address of the slot
    host_address: HostVirtualAddress
    state: str  # LivePageState in lower case
    mpn: MachinePageNumber | None  # None: no frame, or this user may not know
    flags: tuple[str, ...] | None  # of the frame, by name; None: unknown
    count: int | None  # how often the frame is mapped; None: unknown


@dataclass(frozen=True, slots=True)
class LiveAddressMap:
    """The whole way of one address of a live guest."""

    vm: str
    pid: int
    guest_mode: str  # "" if a guest-physical address was asked for
    gva: GuestVirtualAddress | None  # None if a guest-physical address was asked for
    entries: tuple[GuestEntry, ...]
    gpa: GuestPhysicalAddress | None
    page_bytes: int | None
    frame: FrameView | None
    note: str

    def __repr__(self) -> str:
        def place(name: str, number: int | None) -> str:
            return f"{name} {number:#x}" if number is not None else f"no {name}"

        mpn = None if self.frame is None else self.frame.mpn
        return (
            f"<LiveAddressMap of {one_line(self.vm)!r}: {place('gVA', self.gva)}, "
            f"{place('gPA', self.gpa)}, {place('MPN', mpn)}>"
        )

    def _repr_html_(self) -> str:
        """The guest's entries and the host's frame, as a table for notebooks."""
        rows: list[tuple[object, ...]] = [
            (entry.name, f"{entry.gpa:#x}", f"{entry.value:#x}") for entry in self.entries
        ]
        if self.frame is not None:
            state = self.frame.state
            rows.append(("host virtual", f"{self.frame.host_address:#x}", state))
        caption = repr(self)[1:-1] + (f"; {self.note}" if self.note else "")
        return html_table(caption, ("entry", "at", "value"), rows)

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``: addresses as hexadecimal text, since JSON numbers are doubles."""
        return dict(_hexadecimal(asdict(self)))


_PLAIN_NUMBERS = {"count", "pid", "level", "page_bytes"}


def _hexadecimal(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _hexadecimal(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hexadecimal(item) for item in value]
    return hex(value) if type(value) is int and key not in _PLAIN_NUMBERS else value


def frame_behind(
    vm: LiveVm, gpa: GuestPhysicalAddress, kernel: KernelPages | None
) -> FrameView | None:
    """What the host has behind ``gpa`` now, or None if that is no RAM. Reads no content."""
    slot = vm.layout.slot_of(gpa)
    host_address = vm.layout.host_address_of(gpa)
    if slot is None or host_address is None:
        return None
    index = int(vm.layout.indices_of(PpnArray(np.array([physical_page_number(gpa)])))[0])
    entry = vm.pagemap.entries(host_address, 1)
    frame = entry & PAGEMAP_FRAME
    known = bool(entry[0] & PAGEMAP_PRESENT) and int(frame[0]) != 0
    return FrameView(
        ppn=PhysicalPageNumber(gpa >> PAGE_SHIFT),
        block=slot.block.name,
        slot_gpa=slot.first_gpa,
        host_address=host_address,
        state=vm.page_state(index, kernel).name.lower(),
        mpn=MachinePageNumber(int(frame[0])) if known else None,
        flags=flag_names(int(kernel.flags(frame)[0])) if known and kernel else None,
        count=int(kernel.counts(frame)[0]) if known and kernel else None,
    )


def map_live_address(
    vm: LiveVm, walker: GuestWalker, gva: GuestVirtualAddress, kernel: KernelPages | None
) -> LiveAddressMap:
    """Every step of ``gva`` by the walker's tables. Raises ValueError for no address at all."""
    return _complete(vm, walker.translate(gva), kernel)


def map_guest_physical(
    vm: LiveVm, gpa: GuestPhysicalAddress, kernel: KernelPages | None
) -> LiveAddressMap:
    """The host's side of a guest-physical address."""
    frame = frame_behind(vm, gpa, kernel)
    return LiveAddressMap(
        vm.name, vm.pid, "", None, (), GuestPhysicalAddress(gpa), None, frame,
        "" if frame else "no RAM there: a device, or the open bus",
    )  # fmt: skip


_NOTES = {
    LivePageState.UNTOUCHED: "no frame: the next access gets one",
    LivePageState.SWAPPED: "swapped by the host: the next access brings it back",
    LivePageState.SHARED: "merged by KSM: the next write gets a copy",
    LivePageState.ZERO: "the host's page of zeroes: the next write gets a frame",
}


def _complete(
    vm: LiveVm, translation: GuestTranslation, kernel: KernelPages | None
) -> LiveAddressMap:
    frame, note = None, ""
    if translation.gpa is None:
        error = translation.fault_error
        why = "a reserved bit is set" if error & 8 else "not present" if not error & 1 else "denied"
        last = translation.entries[-1].name if translation.entries else "entry"
        note = f"the guest's {last} maps nothing there: {why} (#PF error code {error:#x})"
    else:
        frame = frame_behind(vm, translation.gpa, kernel)
        if frame is None:
            note = "no RAM there: a device, or the open bus"
        else:
            note = _NOTES.get(LivePageState[frame.state.upper()], "")
    mapped = translation.gpa is not None and translation.mode != MODE_OFF
    return LiveAddressMap(
        vm=vm.name,
        pid=vm.pid,
        guest_mode=MODE_NAMES[translation.mode],
        gva=translation.gva,
        entries=translation.entries,
        gpa=translation.gpa,
        page_bytes=translation.page_bytes if mapped else None,
        frame=frame,
        note=note,
    )


@dataclass(frozen=True, slots=True)
class MappedRange:
    """A run of guest virtual addresses that is contiguous in guest-physical memory."""

    gva: GuestVirtualAddress
    bytes: int
    gpa: GuestPhysicalAddress | None  # None: the guest maps nothing there
    page_bytes: int  # of the guest's pages
    rights: str  # "rwxu": readable, writable, executable, for user mode
    states: dict[str, int]  # pages of each state on the host


def map_range(
    vm: LiveVm,
    walker: GuestWalker,
    first: GuestVirtualAddress,
    end: GuestVirtualAddress,
    kernel: KernelPages | None,
) -> Iterator[MappedRange]:
    """The runs between ``first`` and ``end`` (not included), unmapped ones among them.

    Raises ValueError if an end of the range is no address.
    """
    walker.check(first)
    walker.check(GuestVirtualAddress(end - 1))
    states = vm.page_states(kernel).state
    canonical_gap = 1 << (walker.address_bits - 1), (1 << 64) - (1 << (walker.address_bits - 1))
    current: MappedRange | None = None
    at = first & ~(PAGE_BYTES - 1)
    while at < end:
        if walker.address_bits > 32 and canonical_gap[0] <= at < canonical_gap[1]:
            at = canonical_gap[1]
            continue
        step = walker.translate(GuestVirtualAddress(at))
        size = min(step.page_bytes - at % step.page_bytes, end - at)
        rights = "r" * (step.gpa is not None) + "w" * step.writable
        rights += "x" * step.executable + "u" * step.user
        held = {} if step.gpa is None else _states_of(vm, states, step.gpa, size)
        part = MappedRange(GuestVirtualAddress(at), size, step.gpa, step.page_bytes, rights, held)
        if current is not None and _continues(current, part):
            current = _append(current, part)
        else:
            if current is not None:
                yield current
            current = part
        at += size
    if current is not None:
        yield current


def _states_of(vm: LiveVm, states: Any, gpa: GuestPhysicalAddress, size: int) -> dict[str, int]:
    first = gpa >> PAGE_SHIFT
    indices = vm.layout.indices_of(PpnArray(np.arange(first, first + -(-size // PAGE_BYTES))))
    counts = np.bincount(states[indices[indices >= 0]], minlength=len(LivePageState))
    held = {state.name.lower(): int(counts[state]) for state in LivePageState if counts[state]}
    if missing := int(np.count_nonzero(indices < 0)):
        held["no RAM"] = missing
    return held


def _continues(current: MappedRange, part: MappedRange) -> bool:
    if current.gva + current.bytes != part.gva or current.rights != part.rights:
        return False
    if current.gpa is None or part.gpa is None:
        return current.gpa is part.gpa
    return current.gpa + current.bytes == part.gpa and current.page_bytes == part.page_bytes


def _append(current: MappedRange, part: MappedRange) -> MappedRange:
    held = dict(current.states)
    for state, count in part.states.items():
        held[state] = held.get(state, 0) + count
    return MappedRange(
        current.gva, current.bytes + part.bytes, current.gpa, current.page_bytes, current.rights,
        held,
    )  # fmt: skip


def _flags_of(value: int) -> str:
    return " ".join(name for bit, name in ENTRY_NAMES.items() if value & bit) or "-"


def render_live_map(result: LiveAddressMap) -> str:
    """The map as text, a line a step, for a terminal."""
    mode = f", {result.guest_mode} guest" if result.guest_mode else ""
    lines = [f"{result.vm}: process {result.pid}{mode}"]
    if result.gva is not None:
        lines.append(f"guest virtual    gVA {result.gva:#018x}")
    lines += [
        f"  {entry.name:<6} at gPA {entry.gpa:#012x}: {entry.value:#018x}  {_flags_of(entry.value)}"
        for entry in result.entries
    ]
    if result.gpa is not None:
        size = f"  page {result.page_bytes >> 10} KiB" if result.page_bytes else ""
        ppn = result.gpa >> PAGE_SHIFT
        lines.append(f"guest physical   gPA {result.gpa:#014x}  PPN {ppn:#x}{size}")
    frame = result.frame
    if frame is not None:
        lines.append(f"  slot   from gPA {frame.slot_gpa:#x}: RAM block {frame.block}")
        lines.append(f"host virtual     hVA {frame.host_address:#016x}")
        if frame.mpn is not None:
            flags = "unknown" if frame.flags is None else ", ".join(frame.flags) or "-"
            count = "unknown" if frame.count is None else str(frame.count)
            lines.append(
                f"machine          MPN {frame.mpn:#x}  {frame.state}; mapped {count} times; {flags}"
            )
        else:
            lines.append(f"machine          {frame.state}")
    if result.note:
        lines.append(f"note: {result.note}")
    return "\n".join(lines)
