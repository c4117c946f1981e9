# SPDX-License-Identifier: Apache-2.0
"""Every step from a guest virtual address to the machine page behind it.

Reads the tables in plain Python, entry by entry, for people and for scripts, by the rules of the
compiled walkers (``guest_rules``), and changes no accessed or dirty bit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from memvirt.address import (
    PAGE_SHIFT,
    GuestPhysicalAddress,
    GuestVirtualAddress,
    MachineAddress,
    MachinePageNumber,
    PhysicalPageNumber,
    is_canonical,
    machine_address,
    machine_page_number,
    page_offset,
    physical_page_number,
)
from memvirt.mmu.entry import (
    ENTRY_ADDRESS_MASK,
    ENTRY_NAMES,
    EPT_ENTRY_NAMES,
    EPT_LARGE,
    EPT_RIGHTS,
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
    FLAG_UNWRITTEN,
    FLAG_WRITE_CACHED,
)
from memvirt.notebook import html_table, one_line
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import PageState

from .guest_rules import ACCESSES, GuestRules
from .view import PageUnavailable, VmView

__all__ = ["AddressMap", "Step", "map_address", "render"]

_NOT_PRESENT = "not present: the guest would take a true page fault"

_FLAG_NAMES = {
    FLAG_TRACED: "traced page table",
    FLAG_SHADOWED: "shadowed page table",
    FLAG_WRITE_CACHED: "written",
    FLAG_UNWRITTEN: "unwritten since hashed",
    FLAG_BALLOONED: "ballooned",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One entry read on the way. ``address`` is guest-physical for the guest's own tables,
    machine for shadow and nested tables; ``mpn`` is the frame the entry lies in."""

    table: str  # "guest", "shadow" or "nested"
    entry_name: str
    address: GuestPhysicalAddress | MachineAddress
    mpn: MachinePageNumber | None
    value: int
    flags: tuple[str, ...]
    points_to: int | None


@dataclass(frozen=True, slots=True)
class AddressMap:
    """The whole way of one guest virtual address. What is None does not exist (yet).

    ``faults`` is what the processor would do with a read, a write and a fetch at the present
    privilege level: the error code of the page fault, None if the guest's tables allow it. It is
    empty if a table cannot be read.
    """

    vm: str
    paging: str
    guest_mode: str
    gva: GuestVirtualAddress
    guest: tuple[Step, ...]
    gpa: GuestPhysicalAddress | None
    page_bytes: int | None
    ppn: PhysicalPageNumber | None
    privilege_level: int
    faults: dict[str, int | None]
    state: str | None
    pmap_flags: tuple[str, ...]
    mpn: MachinePageNumber | None
    slot: int | None
    machine_address: MachineAddress | None
    second: tuple[Step, ...]
    note: str

    def __repr__(self) -> str:
        def place(name: str, number: int | None) -> str:
            return f"{name} {number:#x}" if number is not None else f"no {name}"

        return (
            f"<AddressMap of {one_line(self.vm)!r}: gVA {self.gva:#x}, {place('gPA', self.gpa)}, "
            f"{place('MPN', self.mpn)}, {len(self.guest)} + {len(self.second)} entries>"
        )

    def _repr_html_(self) -> str:
        """Every entry read on the way, as a table for notebooks."""
        rows = (
            (step.table, step.entry_name, f"{step.address:#x}", f"{step.value:#x}",
             " ".join(step.flags), None if step.points_to is None else f"{step.points_to:#x}")
            for step in (*self.guest, *self.second)
        )  # fmt: skip
        caption = repr(self)[1:-1] + (f"; {self.note}" if self.note else "")
        return html_table(caption, ("table", "entry", "at", "value", "flags", "points to"), rows)

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


@dataclass(frozen=True, slots=True)
class _GuestWalk:
    """What the guest's own tables say of an address."""

    steps: tuple[Step, ...] = ()
    gpa: GuestPhysicalAddress | None = None
    page_bytes: int = 1 << PAGE_SHIFT
    faults: dict[str, int | None] = field(default_factory=dict)
    note: str = ""


def _guest_walk(view: VmView, rules: GuestRules, gva: GuestVirtualAddress) -> _GuestWalk:
    """The guest's entries for ``gva``, as far as the processor would go."""
    mode = rules.mode
    if mode == MODE_OFF:
        return _GuestWalk(gpa=GuestPhysicalAddress(gva), faults=dict.fromkeys(ACCESSES))
    size, bits = (4, 10) if mode == MODE_2LEVEL else (8, 9)
    mask = 0xFFFF_F000 if mode == MODE_2LEVEL else ENTRY_ADDRESS_MASK
    table = view.registers["cr3"] & {MODE_2LEVEL: 0xFFFF_F000, MODE_PAE: 0xFFFF_FFE0}.get(
        mode, mask
    )
    steps: list[Step] = []
    for level in range(mode, 0, -1):
        index = (gva >> (PAGE_SHIFT + bits * (level - 1))) & ((1 << bits) - 1)
        if mode == MODE_PAE and level == 3:
            index &= 3
        gpa = GuestPhysicalAddress(table + index * size)
        name, note = LEVEL_NAMES[level], ""
        if physical_page_number(gpa) >= view.pages:
            value = (1 << 8 * size) - 1
            note = f"no memory at gPA {gpa:#x}, where the {name} is: the open bus reads as ones"
        else:
            try:
                value = view.read_entry(gpa, size)
            except PageUnavailable as error:
                note = f"the {name} at gPA {gpa:#x} cannot be read: {error}"
                return _GuestWalk(tuple(steps), note=note)
        present = bool(value & PRESENT)
        reserved = present and rules.has_reserved_bits(level, value)
        leaf = present and not reserved and rules.is_leaf(level, value)
        target = None
        if leaf:
            target = rules.leaf_address(level, value, GuestVirtualAddress(0))
        elif present and not reserved:
            target = GuestPhysicalAddress(value & mask)
        mpn, flags = view.frame_of(physical_page_number(gpa)), _names(value, ENTRY_NAMES)
        steps.append(Step("guest", name, gpa, mpn, value, flags, target))
        if not present:
            return _GuestWalk(tuple(steps), faults=rules.faults_absent(), note=_NOT_PRESENT)
        if reserved:
            note = note or f"a reserved bit is set in the {name}: the guest would take a page fault"
            return _GuestWalk(tuple(steps), faults=rules.faults_reserved(), note=note)
        rules.restrict(level, value)
        if leaf:
            found = rules.leaf_address(level, value, gva)
            page_bytes = 1 << (PAGE_SHIFT + bits * (level - 1))
            return _GuestWalk(tuple(steps), found, page_bytes, rules.faults(), note)
        assert target is not None
        table = target
    raise AssertionError("an entry of level 1 is a leaf")


def _second_steps(
    view: VmView,
    kind: str,
    root: MachinePageNumber,
    levels: int,
    address: GuestVirtualAddress | GuestPhysicalAddress,
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
                machine_address(table, slot * 8),
                table,
                value,
                _names(value, names),
                target,
            )
        )
        if target is None or (kind == "nested" and level > 1 and value & EPT_LARGE):
            break
        table = machine_page_number(MachineAddress(target))
    return steps


def _table_steps(
    view: VmView, gva: GuestVirtualAddress, gpa: GuestPhysicalAddress | None
) -> list[Step]:
    translation = view.translation
    if translation.root is None:
        return []
    if (
        view.paging is PagingMode.NESTED
        and gpa is not None
        and physical_page_number(gpa) < view.pages
    ):
        root = translation.root
        return _second_steps(view, "nested", root, 4, gpa, EPT_RIGHTS, EPT_ENTRY_NAMES)
    current = translation.root_cr3 == view.registers["cr3"]
    if view.paging is PagingMode.SHADOW and current:
        root, levels = translation.root, translation.levels
        return _second_steps(view, "shadow", root, levels, gva, PRESENT, ENTRY_NAMES)
    return []


def _check_address(mode: int, gva: GuestVirtualAddress) -> None:
    if not 0 <= gva < 1 << 64:
        raise ValueError(f"{gva:#x} is not a 64-bit address")
    bits = 57 if mode == MODE_5LEVEL else 48
    if mode >= MODE_4LEVEL and not is_canonical(GuestVirtualAddress(gva), bits):
        raise ValueError(f"{gva:#x} is not canonical: bits above the {MODE_NAMES[mode]} range")
    if mode < MODE_4LEVEL and gva >> 32:
        raise ValueError(f"{gva:#x} does not fit the guest's 32-bit addresses")


def map_address(view: VmView, gva: GuestVirtualAddress) -> AddressMap:
    """Every step of ``gva`` (0 to 2**64 - 1), by the guest's current tables.

    Raises ValueError for an address that cannot be one (in long mode, a non-canonical one).
    """
    rules = GuestRules(view)
    _check_address(rules.mode, gva)
    walk = _guest_walk(view, rules, gva)
    gpa, note = walk.gpa, walk.note
    second: list[Step] = []
    try:
        second = _table_steps(view, gva, gpa)
    except PageUnavailable as error:
        note = f"a {view.paging.name.lower()} table cannot be read: {error}"
    ppn = None if gpa is None else physical_page_number(gpa)
    state = mpn = slot = machine = None
    flags: tuple[str, ...] = ()
    if ppn is not None and ppn >= view.pages:
        note = "no memory there: a device, or the open bus"
    elif ppn is not None and gpa is not None:
        page_state = view.state_of(ppn)
        state, flags = page_state.name.lower(), _names(int(view.flags[ppn]), _FLAG_NAMES)
        mpn = view.frame_of(ppn)
        if mpn is not None:
            machine = machine_address(mpn, page_offset(gpa))
        elif page_state is PageState.UNMAPPED:
            note = "no frame yet: the next access gets a zeroed one"
        else:
            slot = int(view.frame[ppn])
            note = "kept aside: the next access brings it back"
    return AddressMap(
        vm=view.name,
        paging=view.paging.name.lower(),
        guest_mode=MODE_NAMES[rules.mode],
        gva=gva,
        guest=walk.steps,
        gpa=gpa,
        page_bytes=None if gpa is None else walk.page_bytes,
        ppn=ppn,
        privilege_level=view.translation.privilege_level,
        faults=walk.faults,
        state=state,
        pmap_flags=flags,
        mpn=mpn,
        slot=slot,
        machine_address=machine,
        second=tuple(second),
        note=note,
    )


def printable(text: str) -> str:
    """``text`` with whatever a terminal might obey written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _access_line(result: AddressMap) -> str:
    words = (
        f"{name} {'allowed' if code is None else f'#PF({code:#x})'}"
        for name, code in result.faults.items()
    )
    return f"  access at CPL {result.privilege_level}: {', '.join(words)}"


def render(result: AddressMap) -> str:
    """The map as text, a line a step, for a terminal."""
    lines = [f"{printable(result.vm)}: {result.guest_mode} guest, {result.paging} paging"]
    lines.append(f"guest virtual    gVA {result.gva:#018x}")
    for step in result.guest:
        frame = "not resident" if step.mpn is None else f"MPN {step.mpn:#x}"
        lines.append(
            f"  {step.entry_name:<6} at gPA {step.address:#012x} ({frame}): "
            f"{step.value:#018x}  {' '.join(step.flags) or '-'}"
        )
    if result.guest and result.faults:
        lines.append(_access_line(result))
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
