# SPDX-License-Identifier: Apache-2.0
"""CPUID feature bits that are hidden from the guest, each with its reason.

CPUID may offer only what a guest can use as the manual says. Two tables: what memvirt does not
model, whatever the engine does, and what the stock engine executes wrongly. A build of the engine
that executes them right leaves the second table out (``hidden_features``).

Bits are those of Intel SDM vol. 2A, CPUID (tables 3-8 to 3-11), and AMD64 APM vol. 3 appendix E for
the leaves from 0x80000000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class HiddenFeature:
    """One feature flag, as the manual names it, and why a guest does not see it."""

    name: str
    leaf: int
    register: Literal["a", "b", "c", "d"]
    bit: int
    reason: str


NOT_MODELLED = (
    HiddenFeature("MONITOR", 1, "c", 3, "no monitored stores"),
    HiddenFeature("PDCM", 1, "c", 15, "no performance MSRs"),
    HiddenFeature("PCID", 1, "c", 17, "translations are not tagged by context"),
    HiddenFeature("X2APIC", 1, "c", 21, "the local APIC has its memory-mapped registers only"),
    HiddenFeature("TSC_DEADLINE", 1, "c", 24, "the local APIC's timer has no such mode"),
    HiddenFeature("XSAVE", 1, "c", 26, "state the engine does not fully keep"),
    HiddenFeature("OSXSAVE", 1, "c", 27, "as XSAVE"),
    HiddenFeature("AVX", 1, "c", 28, "as XSAVE"),
    HiddenFeature("RDRAND", 1, "c", 30, "not reproducible"),
    HiddenFeature("MCE", 1, "d", 7, "no machine checks"),
    HiddenFeature("MTRR", 1, "d", 12, "no memory types by range"),
    HiddenFeature("MCA", 1, "d", 14, "no machine checks"),
    HiddenFeature("HTT", 1, "d", 28, "one logical processor"),
    HiddenFeature("HLE", 7, "b", 4, "no transactions"),
    HiddenFeature("AVX2", 7, "b", 5, "as XSAVE"),
    HiddenFeature(
        "ERMS", 7, "b", 9, "repeated string instructions are slower than loops of stores"
    ),
    HiddenFeature("INVPCID", 7, "b", 10, "as PCID"),
    HiddenFeature("RTM", 7, "b", 11, "no transactions"),
    HiddenFeature("MPX", 7, "b", 14, "as XSAVE"),
    HiddenFeature("RDSEED", 7, "b", 18, "not reproducible"),
    HiddenFeature("PKU", 7, "c", 3, "no protection keys"),
    HiddenFeature("OSPKE", 7, "c", 4, "no protection keys"),
    HiddenFeature("LA57", 7, "c", 16, "a fifth level is of use beyond 64 TiB of memory only"),
    HiddenFeature("RDPID", 7, "c", 22, "TSC_AUX is not kept"),
    HiddenFeature("FSRM", 7, "d", 4, "as ERMS"),
    HiddenFeature("SVM", 0x8000_0001, "c", 2, "no nested virtualization"),
    HiddenFeature("RDTSCP", 0x8000_0001, "d", 27, "not intercepted: it would read the host's time"),
)

# Encoded among the SSE instructions, but on general registers: CR4.OSFXSR, CR0.TS and CR0.EM mean
# nothing to them (SDM vol. 2A section 2.4, exceptions type 13; MOVBE, ADCX and ADOX have none of
# these conditions either). The stock engine decodes them with SSE and refuses them as if they were:
# #UD while OSFXSR is clear or EM is set, #NM while TS is set. Linux from 6.2 on decompresses itself
# with BMI2 before it sets OSFXSR. (CRC32 fares alike with EM or TS set, or with 16-bit operands
# while OSFXSR is clear; but it is part of SSE4.2, which whole distributions ask for.)
_AS_SSE = "the engine refuses it while CR4.OSFXSR is clear or CR0.EM or CR0.TS is set"
STOCK_ENGINE_WRONG = (
    HiddenFeature("SEP", 1, "d", 11, "the engine skips sysenter"),
    HiddenFeature("MOVBE", 1, "c", 22, _AS_SSE),
    HiddenFeature("BMI1", 7, "b", 3, _AS_SSE),
    HiddenFeature("BMI2", 7, "b", 8, _AS_SSE),
    HiddenFeature("ADX", 7, "b", 19, _AS_SSE),
)


def hidden_features(*, stock_engine: bool) -> tuple[HiddenFeature, ...]:
    """What a guest on this engine must not be offered."""
    return (*NOT_MODELLED, *STOCK_ENGINE_WRONG) if stock_engine else NOT_MODELLED


def hidden_bits(features: tuple[HiddenFeature, ...]) -> dict[tuple[int, str], int]:
    """The bits to clear, by leaf and register."""
    masks: dict[tuple[int, str], int] = {}
    for feature in features:
        key = feature.leaf, feature.register
        masks[key] = masks.get(key, 0) | 1 << feature.bit
    return masks
