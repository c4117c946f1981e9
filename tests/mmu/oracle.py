# SPDX-License-Identifier: Apache-2.0
"""An independent, slow model of x86 paging and of EPT, written from the manuals.

Intel SDM vol. 3A sections 4.3 to 4.8, vol. 3C section 29.3. Shares no code with the walkers.
Memory is a ``bytearray``-like object; faults are values.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Cpu:
    """Control registers and processor state a walk depends on."""

    pg: bool = True
    pae: bool = True
    lma: bool = True
    la57: bool = False
    pse: bool = False
    wp: bool = True
    smep: bool = False
    smap: bool = False
    nxe: bool = True
    ac: bool = False
    user: bool = False
    implicit: bool = False
    cr3: int = 0
    physical_bits: int = 40
    gigabyte_pages: bool = True


@dataclass
class Walk:
    """What the model expects of a walk."""

    error: int | None = None
    level: int = 0
    gpa: int = -1
    size: int = 0
    user: bool = True
    writable: bool = True
    no_execute: bool = False
    reads: int = 0
    updates: list[tuple[int, int, int]] = field(default_factory=list)  # address, size, value


def _bits(value: int, high: int, low: int) -> int:
    return (value >> low) & ((1 << (high - low + 1)) - 1)


def _reserved(cpu: Cpu, kind: str, level: int, entry: int) -> bool:
    m = cpu.physical_bits
    page = bool(entry & 0x80)
    if kind == "32":
        if level == 2 and page and cpu.pse:
            wide = min(m, 40)
            return _bits(entry, 21, 13) >> (wide - 32) != 0
        return False
    if kind == "pae" and level == 3:
        return bool(_bits(entry, 2, 1) or _bits(entry, 8, 5) or _bits(entry, 63, m))
    if not cpu.nxe and entry >> 63:
        return True
    if _bits(entry, 62 if kind == "pae" else 51, m):
        return True
    if level == 1 or not page:
        return False
    if level >= 4 or (level == 3 and not cpu.gigabyte_pages):
        return True
    return _bits(entry, 29 if level == 3 else 20, 13) != 0


def walk(memory: bytearray, cpu: Cpu, access: str, gva: int) -> Walk:
    """The expected result of one access ("read", "write" or "fetch")."""
    result = Walk()
    if not cpu.pg:
        result.gpa, result.size = gva & 0xFFFFFFFF, 1 << 32
        return result
    if not cpu.pae:
        kind, shifts, size, mask = "32", [22, 12], 4, 0x3FF
        table = cpu.cr3 & 0xFFFFF000
    elif not cpu.lma:
        kind, shifts, size, mask = "pae", [30, 21, 12], 8, 0x1FF
        table = cpu.cr3 & 0xFFFFFFE0
    else:
        kind, size, mask = "long", 8, 0x1FF
        shifts = [48, 39, 30, 21, 12] if cpu.la57 else [39, 30, 21, 12]
        table = cpu.cr3 & 0xFFFFFFFFFF000
    supervisor = not cpu.user or cpu.implicit
    why = (2 if access == "write" else 0) | (0 if supervisor else 4)
    if access == "fetch" and (cpu.smep or (cpu.nxe and cpu.pae)):
        why |= 16
    seen: list[tuple[int, int, bool]] = []
    entry = 0
    for position, shift in enumerate(shifts):
        level = len(shifts) - position
        result.level = level
        index = (gva >> shift) & (3 if kind == "pae" and level == 3 else mask)
        address = table + index * size
        raw = memory[address : address + size] or b"\xff" * size  # the open bus reads as ones
        entry = int.from_bytes(raw, "little")
        result.reads += 1
        if not entry & 1:
            result.error = why
            return result
        if _reserved(cpu, kind, level, entry):
            result.error = why | 9
            return result
        pdpte = kind == "pae" and level == 3
        if not pdpte:
            result.writable &= bool(entry & 2)
            result.user &= bool(entry & 4)
            result.no_execute |= size == 8 and bool(entry >> 63)
            seen.append((address, entry, False))
        large = bool(entry & 0x80) and level > 1 and not pdpte and (kind != "32" or cpu.pse)
        if level == 1 or large:
            result.size = 1 << shift
            if kind == "32" and large:
                base = (entry & 0xFFC00000) | _bits(entry, 20, 13) << 32
            elif kind == "32":
                base = entry & 0xFFFFF000
            else:
                base = entry & 0xFFFFFFFFFF000 & ~(result.size - 1)
            result.gpa = base | (gva & (result.size - 1))
            break
        table = entry & (0xFFFFF000 if kind == "32" else 0xFFFFFFFFFF000)
    refused = result.no_execute and access == "fetch"
    if supervisor:
        refused |= access == "write" and not result.writable and cpu.wp
        refused |= result.user and access == "fetch" and cpu.smep
        if result.user and access != "fetch" and cpu.smap:
            refused |= cpu.implicit or not cpu.ac
    else:
        refused |= not result.user or (access == "write" and not result.writable)
    if refused:
        result.error = why | 1
        return result
    for number, (address, value, _) in enumerate(seen):
        wanted = value | 0x20
        if access == "write" and number == len(seen) - 1:
            wanted |= 0x40
        if wanted != value:
            result.updates.append((address, size, wanted))
    return result


def ept(
    memory: bytearray, root: int, gpa: int, right: int, physical_bits: int
) -> tuple[str, int, int]:
    """("ok", machine address, reads), ("violation", level, reads) or ("misconfiguration", ...)."""
    table, rights = root, 7
    for reads, level in enumerate((4, 3, 2, 1), 1):
        shift = 12 + 9 * (level - 1)
        address = table + ((gpa >> shift) & 511) * 8
        entry = int.from_bytes(memory[address : address + 8], "little")
        if not entry & 7:
            return "violation", level, reads
        leaf = level == 1 or (level <= 3 and bool(entry & 0x80))
        bad = not entry & 1 or _bits(entry, 51, physical_bits) != 0
        if leaf:
            bad |= _bits(entry, 5, 3) in (2, 3, 7)
            bad |= level > 1 and _bits(entry, shift - 1, 12) != 0
        else:
            bad |= _bits(entry, 7 if level == 4 else 6, 3) != 0
        if bad:
            return "misconfiguration", level, reads
        rights &= entry
        base = entry & 0xFFFFFFFFFF000
        if leaf:
            if not rights & right:
                return "violation", level, reads
            return "ok", (base & ~((1 << shift) - 1)) | (gpa & ((1 << shift) - 1)), reads
        table = base
    raise AssertionError
