# SPDX-License-Identifier: Apache-2.0
"""What may be written to control registers and model-specific registers.

Each function answers whether the processor accepts the value; if not, it raises #GP(0) and nothing
has changed (Intel SDM vol. 2, MOV to control registers and WRMSR; vol. 3A sections 2.5 and 4.1;
section 11.12.4 for the PAT). Which bits exist follows from what CPUID offers: ``cr4_bits`` and
``efer_bits``. Values are signed 64-bit words, as everywhere in compiled code.
"""

from __future__ import annotations

from memvirt.compiled import compiled
from memvirt.mmu.entry import (
    CR0_PE,
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    PRESENT,
)

CR0_NW = 1 << 29
CR0_CD = 1 << 30
PHYSICAL_ADDRESS_BITS = 40  # what CPUID leaf 0x80000008 says
_PDPTE_RESERVED = 0x1E6
_DESCRIPTOR_LONG = 1 << 21  # L, in a descriptor's second word
# VME, PVI, TSD, DE, MCE and PCE exist on every processor of this family.
_CR4_ALWAYS = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 8
# CR4 bit: the CPUID feature it comes with (leaf, register, bit).
_CR4_FEATURES = {
    CR4_PSE: (1, "d", 3),
    CR4_PAE: (1, "d", 6),
    CR4_PGE: (1, "d", 13),
    1 << 9: (1, "d", 24),  # OSFXSR: FXSR
    1 << 10: (1, "d", 25),  # OSXMMEXCPT: SSE
    1 << 11: (7, "c", 2),  # UMIP
    CR4_LA57: (7, "c", 16),
    1 << 16: (7, "b", 0),  # FSGSBASE
    1 << 17: (1, "c", 17),  # PCIDE
    1 << 18: (1, "c", 26),  # OSXSAVE
    CR4_SMEP: (7, "b", 7),
    CR4_SMAP: (7, "b", 20),
    1 << 22: (7, "c", 3),  # PKE
}
_EFER_FEATURES = {
    EFER_SCE: (0x8000_0001, "d", 11),
    EFER_LME | EFER_LMA: (0x8000_0001, "d", 29),
    EFER_NXE: (0x8000_0001, "d", 20),
    1 << 12: (0x8000_0001, "c", 2),  # SVME
    1 << 14: (0x8000_0001, "d", 25),  # FFXSR
}


def _offered(features: dict[int, tuple[int, str, int]], answers: dict[tuple[int, str], int]) -> int:
    bits = 0
    for mask, (leaf, register, bit) in features.items():
        if answers.get((leaf, register), 0) >> bit & 1:
            bits |= mask
    return bits


def cr4_bits(answers: dict[tuple[int, str], int]) -> int:
    """Bits of CR4 that are not reserved, from CPUID's answers by leaf and register."""
    return _CR4_ALWAYS | _offered(_CR4_FEATURES, answers)


def efer_bits(answers: dict[tuple[int, str], int]) -> int:
    """Bits of IA32_EFER that are not reserved, from CPUID's answers by leaf and register."""
    return _offered(_EFER_FEATURES, answers)


@compiled
def is_canonical(address: int) -> bool:
    """True if bits 63 to 47 are equal."""
    sign = address >> 47
    return sign == 0 or sign == -1


@compiled
def cr0_accepted(old: int, new: int, cr4: int, efer: int, cs_flags: int) -> bool:
    """``cs_flags``: the second word of CS's descriptor. Reserved low bits are not refused."""
    if new >> 32 != 0:
        return False
    if new & CR0_PG and not new & CR0_PE:
        return False
    if new & CR0_NW and not new & CR0_CD:
        return False
    long_code = cs_flags & _DESCRIPTOR_LONG != 0
    if new & CR0_PG and not old & CR0_PG and efer & EFER_LME:
        return cr4 & CR4_PAE != 0 and not long_code
    # Paging cannot be left in 64-bit code.
    return not (old & CR0_PG and not new & CR0_PG and efer & EFER_LMA and long_code)


@compiled
def cr3_accepted(value: int, efer: int) -> bool:
    """In IA-32e mode bits beyond the physical address are reserved."""
    return efer & EFER_LMA == 0 or value >> PHYSICAL_ADDRESS_BITS == 0


@compiled
def loads_pdptes(number: int, old: int, new: int, cr0: int, cr4: int, efer: int) -> bool:
    """True if writing ``new`` to CR0, CR3 or CR4 loads the four PDPTEs (SDM vol. 3A section 4.4.1).

    ``cr0`` and ``cr4`` are as they will be after the write.
    """
    if cr0 & CR0_PG == 0 or cr4 & CR4_PAE == 0 or efer & EFER_LME != 0:
        return False
    if number == 3:
        return True
    changed = old ^ new
    if number == 0:
        return changed & (CR0_PG | CR0_CD | CR0_NW) != 0
    return changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP) != 0


@compiled
def pdpte_accepted(entry: int) -> bool:
    """True if a PDPTE that is loaded sets no reserved bit, or is not present (table 4-8)."""
    if entry & PRESENT == 0:
        return True
    return entry & _PDPTE_RESERVED == 0 and entry >> PHYSICAL_ADDRESS_BITS == 0


@compiled
def cr4_accepted(old: int, new: int, bits: int, efer: int) -> bool:
    """PAE cannot be cleared, nor LA57 changed, in IA-32e mode."""
    if new & ~bits != 0:
        return False
    if efer & EFER_LMA == 0:
        return True
    return new & CR4_PAE != 0 and (old ^ new) & CR4_LA57 == 0


@compiled
def efer_accepted(old: int, new: int, bits: int, cr0: int) -> bool:
    """LME cannot change while paging is on. Writes of LMA are ignored."""
    if new & ~bits != 0:
        return False
    return cr0 & CR0_PG == 0 or (old ^ new) & EFER_LME == 0


@compiled
def pat_accepted(value: int) -> bool:
    """Each byte is a memory type: 0, 1, 4, 5, 6 or 7."""
    for entry in range(8):
        kind = value >> (8 * entry) & 0xFF
        if kind > 7 or kind == 2 or kind == 3:
            return False
    return True
