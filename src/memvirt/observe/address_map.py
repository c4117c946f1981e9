# SPDX-License-Identifier: Apache-2.0
"""Every step from a guest virtual address to the machine page behind it.

Reads the tables in plain Python, entry by entry, for people and for scripts; it shares no code
with the compiled walkers, and it changes no accessed or dirty bit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from memvirt.address import PAGE_SHIFT, is_canonical
from memvirt.mmu.entry import (
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    CR4_PSE,
    EFER_LMA,
    ENTRY_ADDRESS_MASK,
    ENTRY_NAMES,
    EPT_ENTRY_NAMES,
    EPT_LARGE,
    EPT_RIGHTS,
    LARGE,
    LEVEL_NAMES,
    MODE_2LEVEL,
    MODE_4LEVEL,
    MODE_5LEVEL,
    MODE_NAMES,
    MODE_OFF,
    MODE_PAE,
    PRESENT,
)
from memvirt.mmu.page_state import (
    FLAG_BALLOONED,
    FLAG_SHADOWED,
    FLAG_TRACED,
    FLAG_WRITE_CACHED,
)
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import RESIDENT

from .view import VmView

_FLAG_NAMES = {
    FLAG_TRACED: "traced page table",
    FLAG_SHADOWED: "shadowed page table",
    FLAG_WRITE_CACHED: "written",
    FLAG_BALLOONED: "ballooned",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One entry read on the way. ``address`` is guest-physical for the guest's own tables,
    machine for shadow and nested tables; ``mpn`` is the frame the entry lies in."""

    table: str  # "guest", "shadow" or "nested"
    entry_name: str
    address: int
    mpn: int | None
    value: int
    flags: tuple[str, ...]
    points_to: int | None


@dataclass(frozen=True, slots=True)
class AddressMap:
    """The whole way of one guest virtual address. What is None does not exist (yet)."""

    vm: str
    paging: str
    guest_mode: str
    gva: int
    guest: tuple[Step, ...]
    gpa: int | None
    page_bytes: int | None
    ppn: int | None
    state: str | None
    pmap_flags: tuple[str, ...]
    mpn: int | None
    slot: int | None
    machine_address: int | None
    second: tuple[Step, ...]
    note: str

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``: addresses as hexadecimal text, since JSON numbers are doubles."""

        def convert(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: convert(item) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [convert(item) for item in value]
            return hex(value) if type(value) is int else value

        return dict(convert(asdict(self)))


def _names(value: int, names: dict[int, str]) -> tuple[str, ...]:
    return tuple(name for bit, name in names.items() if value & bit)


def guest_mode(view: VmView) -> int:
    """The guest's paging mode (MODE_* of mmu.entry)."""
    registers = view.registers
    if not registers["cr0"] & CR0_PG:
        return MODE_OFF
    if not registers["cr4"] & CR4_PAE:
        return MODE_2LEVEL
    if not registers["efer"] & EFER_LMA:
        return MODE_PAE
    return MODE_5LEVEL if registers["cr4"] & CR4_LA57 else MODE_4LEVEL


def _frame_of(view: VmView, gpa: int) -> int | None:
    ppn = gpa >> PAGE_SHIFT
    if ppn < view.pages and view.state_of(ppn) in RESIDENT:
        return int(view.frame[ppn])
    return None


def _guest_steps(view: VmView, mode: int, gva: int) -> tuple[list[Step], int | None, int, str]:
    """The guest's entries, the guest-physical address or None, the page size, and a note."""
    size, bits = (4, 10) if mode == MODE_2LEVEL else (8, 9)
    mask = 0xFFFF_F000 if mode == MODE_2LEVEL else ENTRY_ADDRESS_MASK
    table = view.registers["cr3"] & (mask if mode != MODE_PAE else 0xFFFF_FFE0)
    steps: list[Step] = []
    for level in range(mode, 0, -1):
        shift = PAGE_SHIFT + bits * (level - 1)
        index = (gva >> shift) & ((1 << bits) - 1)
        if mode == MODE_PAE and level == 3:
            index &= 3
        gpa = table + index * size
        if gpa >> PAGE_SHIFT >= view.pages:
            return steps, None, 0, f"the guest's table at gPA {gpa:#x} is beyond its memory"
        value = view.read_entry(gpa, size)
        large = bool(value & LARGE) and level > 1
        if mode == MODE_2LEVEL:
            large = large and bool(view.registers["cr4"] & CR4_PSE)
        leaf = level == 1 or large
        target = value & mask if value & PRESENT else None
        if leaf and target is not None:
            target &= ~((1 << shift) - 1)
            if mode == MODE_2LEVEL and large:
                target |= ((value >> 13) & 0xFF) << 32
        steps.append(
            Step(
                "guest",
                LEVEL_NAMES[level],
                gpa,
                _frame_of(view, gpa),
                value,
                _names(value, ENTRY_NAMES),
                target,
            )
        )
        if target is None:
            return steps, None, 0, "not present: the guest would take a true page fault"
        if leaf:
            return steps, target | (gva & ((1 << shift) - 1)), 1 << shift, ""
        table = target
    raise AssertionError("a walk ends at level 1")


def _second_steps(
    view: VmView,
    kind: str,
    root: int,
    levels: int,
    address: int,
    rights: int,
    names: dict[int, str],
) -> list[Step]:
    """The entries of a table of ours for ``address``, down to the first absent one."""
    steps: list[Step] = []
    table = root
    for level in range(levels, 0, -1):
        slot = (address >> (PAGE_SHIFT + 9 * (level - 1))) & 511
        value = view.read_table(table, slot)
        present = bool(value & rights)
        target = value & ENTRY_ADDRESS_MASK if present else None
        steps.append(
            Step(
                kind,
                f"level {level}",
                (table << PAGE_SHIFT) + slot * 8,
                table,
                value,
                _names(value, names),
                target,
            )
        )
        if target is None or (kind == "nested" and level > 1 and value & EPT_LARGE):
            break
        table = target >> PAGE_SHIFT
    return steps


def _table_steps(view: VmView, gva: int, gpa: int | None) -> list[Step]:
    mmu, shadow = view.vmm.mmu, view.vmm.shadow
    if view.paging is PagingMode.NESTED and gpa is not None and gpa >> PAGE_SHIFT < view.pages:
        root = int(mmu.nested_root)
        return _second_steps(view, "nested", root, 4, gpa, EPT_RIGHTS, EPT_ENTRY_NAMES)
    current = int(shadow.root_cr3) == int(view.registers["cr3"])
    if view.paging is PagingMode.SHADOW and shadow.root_index >= 0 and current:
        root, levels = int(mmu.shadow_root), int(mmu.shadow_levels)
        return _second_steps(view, "shadow", root, levels, gva, PRESENT, ENTRY_NAMES)
    return []


def map_address(view: VmView, gva: int) -> AddressMap:
    """Every step of ``gva`` (0 to 2**64 - 1), by the guest's current tables.

    Raises ValueError for an address that cannot be one.
    """
    mode = guest_mode(view)
    if not 0 <= gva < 1 << 64:
        raise ValueError(f"{gva:#x} is not a 64-bit address")
    if mode >= MODE_4LEVEL and not is_canonical(gva, 57 if mode == MODE_5LEVEL else 48):  # type: ignore[arg-type]
        raise ValueError(f"{gva:#x} is not canonical: bits above the {MODE_NAMES[mode]} range")
    if mode < MODE_4LEVEL and gva >> 32:
        raise ValueError(f"{gva:#x} does not fit the guest's 32-bit addresses")
    steps: list[Step] = []
    gpa: int | None = gva
    page_bytes, note = 1 << PAGE_SHIFT, ""
    if mode != MODE_OFF:
        steps, gpa, page_bytes, note = _guest_steps(view, mode, gva)
    second = _table_steps(view, gva, gpa)
    ppn = None if gpa is None else gpa >> PAGE_SHIFT
    state = mpn = slot = machine = None
    flags: tuple[str, ...] = ()
    if ppn is not None and ppn >= view.pages:
        note = "no memory there: a device, or the open bus"
    elif ppn is not None and gpa is not None:
        page_state = view.state_of(ppn)
        state, flags = page_state.name.lower(), _names(int(view.flags[ppn]), _FLAG_NAMES)
        if page_state in RESIDENT:
            mpn = int(view.frame[ppn])
            machine = (mpn << PAGE_SHIFT) | (gpa & ((1 << PAGE_SHIFT) - 1))
        elif page_state.name == "UNMAPPED":
            note = "no frame yet: the next access gets a zeroed one"
        else:
            slot = int(view.frame[ppn])
            note = "kept aside: the next access brings it back"
    return AddressMap(
        vm=view.name,
        paging=view.paging.name.lower(),
        guest_mode=MODE_NAMES[mode],
        gva=gva,
        guest=tuple(steps),
        gpa=gpa,
        page_bytes=page_bytes or None,
        ppn=ppn,
        state=state,
        pmap_flags=flags,
        mpn=mpn,
        slot=slot,
        machine_address=machine,
        second=tuple(second),
        note=note,
    )


def render(result: AddressMap) -> str:
    """The map as text, a line a step, for a terminal."""
    lines = [f"{result.vm}: {result.guest_mode} guest, {result.paging} paging"]
    lines.append(f"guest virtual    gVA {result.gva:#018x}")
    for step in result.guest:
        frame = "not resident" if step.mpn is None else f"MPN {step.mpn:#x}"
        lines.append(
            f"  {step.entry_name:<6} at gPA {step.address:#012x} ({frame}): "
            f"{step.value:#018x}  {' '.join(step.flags) or '-'}"
        )
    if result.gpa is not None:
        lines.append(
            f"guest physical   gPA {result.gpa:#014x}  PPN {result.ppn:#x}"
            + (
                f"  page {result.page_bytes >> 10} KiB"
                if result.guest and result.page_bytes
                else ""
            )
        )
    if result.state is not None:
        where = "" if result.mpn is None else f" -> MPN {result.mpn:#x}"
        where += "" if result.slot is None else f" -> slot {result.slot}"
        extra = f"  ({', '.join(result.pmap_flags)})" if result.pmap_flags else ""
        lines.append(f"  pmap   PPN {result.ppn:#x}: {result.state}{where}{extra}")
    for step in result.second:
        absent = "" if step.points_to is not None else "  absent: filled at the next access"
        lines.append(
            f"  {step.table} {step.entry_name} at mA {step.address:#012x}: "
            f"{step.value:#018x}  {' '.join(step.flags) or '-'}{absent}"
        )
    if result.machine_address is not None:
        lines.append(f"machine          mA  {result.machine_address:#014x}  MPN {result.mpn:#x}")
    if result.note:
        lines.append(f"note: {result.note}")
    return "\n".join(lines)
