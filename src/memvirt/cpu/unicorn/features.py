# SPDX-License-Identifier: Apache-2.0
"""CPUID feature flags: which a guest sees and which it does not, each with its reason.

CPUID may offer only what a guest can use as the manual says, in every state. So a guest sees a flag
only if it is in OFFERED, and the engine announces it too; a flag that nobody has thought about is
hidden. HIDDEN holds what the engine announces, or guests look for, and why they do not find it.
STOCK_ENGINE_WRONG names flags of OFFERED that the package index's build of the engine executes
wrongly: there they are hidden as well, but for those of STOCK_ENGINE_LIMITS.

``tests/cpu/test_offered_features.py`` has a guest for every flag offered. docs/cpuid.md is made of
these tables. Bits are those of Intel SDM vol. 2A, CPUID (tables 3-8 to 3-11), and AMD64 APM vol. 3
appendix E for the leaves from 0x80000000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature flag, as the manual names it, and why a guest sees it or does not."""

    name: str
    leaf: int
    register: Literal["a", "b", "c", "d"]
    bit: int
    reason: str


_ENGINE = "the engine executes its instructions"
_MENDED = "memvirt's build of the engine executes its instructions, in every state of CR0 and CR4"
_WALKERS = "memvirt's page walkers have it"

OFFERED = (
    Feature("SSE3", 1, "c", 0, _ENGINE),
    Feature("PCLMULQDQ", 1, "c", 1, _ENGINE),
    Feature("SSSE3", 1, "c", 9, _ENGINE),
    Feature("CMPXCHG16B", 1, "c", 13, _ENGINE),
    Feature("SSE4.1", 1, "c", 19, _ENGINE),
    Feature("SSE4.2", 1, "c", 20, _ENGINE),
    Feature("MOVBE", 1, "c", 22, _MENDED),
    Feature("POPCNT", 1, "c", 23, _ENGINE),
    Feature("AES", 1, "c", 25, _ENGINE),
    Feature("HYPERVISOR", 1, "c", 31, "leaves from 0x40000000 say which"),
    Feature("FPU", 1, "d", 0, "the engine has an x87"),
    Feature("DE", 1, "d", 2, "DR4 and DR5 raise #UD, and breakpoints on ports exist"),
    Feature("PSE", 1, "d", 3, _WALKERS),
    Feature("TSC", 1, "d", 4, "RDTSC gives virtual time, 1 GHz"),
    Feature("MSR", 1, "d", 5, "RDMSR and WRMSR, checked by memvirt"),
    Feature("PAE", 1, "d", 6, _WALKERS),
    Feature("CX8", 1, "d", 8, _ENGINE),
    Feature("APIC", 1, "d", 9, "the platform has a local APIC"),
    Feature("SEP", 1, "d", 11, "memvirt's build of the engine executes SYSENTER and SYSEXIT"),
    Feature("PGE", 1, "d", 13, _WALKERS),
    Feature("CMOV", 1, "d", 15, _ENGINE),
    Feature("PAT", 1, "d", 16, "the MSR and the bit in entries; types have no effect on content"),
    Feature("PSE-36", 1, "d", 17, _WALKERS),
    Feature("CLFSH", 1, "d", 19, "its address is checked; there is no cache to flush"),
    Feature("MMX", 1, "d", 23, _ENGINE),
    Feature("FXSR", 1, "d", 24, _ENGINE),
    Feature("SSE", 1, "d", 25, _ENGINE),
    Feature("SSE2", 1, "d", 26, _ENGINE),
    Feature("ARAT", 6, "a", 2, "the local APIC's timer runs in virtual time, whatever HLT does"),
    Feature("FSGSBASE", 7, "b", 0, _ENGINE),
    Feature("BMI1", 7, "b", 3, _MENDED),
    Feature("SMEP", 7, "b", 7, _WALKERS),
    Feature("BMI2", 7, "b", 8, _MENDED),
    Feature("ADX", 7, "b", 19, _MENDED),
    Feature("SMAP", 7, "b", 20, _WALKERS),
    Feature("CLFLUSHOPT", 7, "b", 23, "as CLFSH"),
    Feature("CLWB", 7, "b", 24, "as CLFSH"),
    Feature("LAHF", 0x8000_0001, "c", 0, _ENGINE),
    Feature("LZCNT", 0x8000_0001, "c", 5, _ENGINE),
    Feature("SYSCALL", 0x8000_0001, "d", 11, "memvirt executes SYSCALL, the engine SYSRET"),
    Feature("NX", 0x8000_0001, "d", 20, _WALKERS),
    Feature("PDPE1GB", 0x8000_0001, "d", 26, _WALKERS),
    Feature("LM", 0x8000_0001, "d", 29, "64-bit and compatibility mode"),
)

HIDDEN = (
    Feature("MONITOR", 1, "c", 3, "no monitored stores"),
    Feature("VMX", 1, "c", 5, "no nested virtualization"),
    Feature("FMA", 1, "c", 12, "as XSAVE"),
    Feature("PDCM", 1, "c", 15, "no performance MSRs"),
    Feature("PCID", 1, "c", 17, "translations are not tagged by context"),
    Feature("X2APIC", 1, "c", 21, "the local APIC has its memory-mapped registers only"),
    Feature("TSC_DEADLINE", 1, "c", 24, "the local APIC's timer has no such mode"),
    Feature("XSAVE", 1, "c", 26, "state the engine does not fully keep"),
    Feature("OSXSAVE", 1, "c", 27, "as XSAVE"),
    Feature("AVX", 1, "c", 28, "as XSAVE; VEX encodings raise #UD"),
    Feature("F16C", 1, "c", 29, "as XSAVE"),
    Feature("RDRAND", 1, "c", 30, "not reproducible"),
    Feature("VME", 1, "d", 1, "virtual-8086 mode redirects no interrupts"),
    Feature("MCE", 1, "d", 7, "no machine checks"),
    Feature("MTRR", 1, "d", 12, "no memory types by range"),
    Feature("MCA", 1, "d", 14, "no machine checks"),
    Feature("SS", 1, "d", 27, "no caches to snoop"),
    Feature("HTT", 1, "d", 28, "one logical processor"),
    Feature("HLE", 7, "b", 4, "no transactions"),
    Feature("AVX2", 7, "b", 5, "as XSAVE"),
    Feature("ERMS", 7, "b", 9, "repeated string instructions are slower than loops of stores"),
    Feature("INVPCID", 7, "b", 10, "as PCID"),
    Feature("RTM", 7, "b", 11, "no transactions"),
    Feature("MPX", 7, "b", 14, "as XSAVE"),
    Feature("AVX512F", 7, "b", 16, "as XSAVE"),
    Feature("RDSEED", 7, "b", 18, "not reproducible"),
    Feature("SHA", 7, "b", 29, "the engine does not have it"),
    Feature("UMIP", 7, "c", 2, "the engine does not check it"),
    Feature("PKU", 7, "c", 3, "no protection keys"),
    Feature("OSPKE", 7, "c", 4, "no protection keys"),
    Feature("LA57", 7, "c", 16, "a fifth level is of use beyond 64 TiB of memory only"),
    Feature("RDPID", 7, "c", 22, "TSC_AUX is not kept"),
    Feature("FSRM", 7, "d", 4, "as ERMS"),
    Feature("SVM", 0x8000_0001, "c", 2, "no nested virtualization"),
    Feature("RDTSCP", 0x8000_0001, "d", 27, "not intercepted: it would read the host's time"),
)

# Encoded among the SSE instructions, but on general registers: CR4.OSFXSR, CR0.TS and CR0.EM mean
# nothing to them (SDM vol. 2A section 2.4, exceptions type 13; MOVBE, ADCX and ADOX have none of
# these conditions either). The stock engine decodes them with SSE and refuses them as if they were:
# #UD while OSFXSR is clear or EM is set, #NM while TS is set. Linux from 6.2 on decompresses itself
# with BMI2 before it sets OSFXSR. (CRC32 fares alike with EM or TS set, or with 16-bit operands
# while OSFXSR is clear; but it is part of SSE4.2, which whole distributions ask for.)
_AS_SSE = "the engine refuses it while CR4.OSFXSR is clear or CR0.EM or CR0.TS is set"
STOCK_ENGINE_WRONG = {
    "SEP": "the engine skips sysenter",
    "MOVBE": _AS_SSE,
    "BMI1": _AS_SSE,
    "BMI2": _AS_SSE,
    "ADX": _AS_SSE,
    "CLFSH": "the engine does not check the address",
    "CLFLUSHOPT": "as CLFSH",
    "CLWB": "as CLFSH",
    "FSGSBASE": "the engine takes a base that is not canonical",
}
# Offered on the stock engine all the same: a 64-bit kernel cannot be without them.
STOCK_ENGINE_LIMITS = {
    "MSR": "RDMSR and WRMSR of an MSR that does not exist do nothing",
    "APIC": "IA32_APIC_BASE is not the local APIC's",
    "PAT": "any memory type is taken",
    "FXSR": "FXRSTOR and LDMXCSR take reserved bits of MXCSR",
}


def offered_features(*, stock_engine: bool) -> tuple[Feature, ...]:
    """What a guest on this engine may be offered, if the engine announces it."""
    return tuple(f for f in OFFERED if not (stock_engine and f.name in STOCK_ENGINE_WRONG))


def flag_masks(features: tuple[Feature, ...]) -> dict[tuple[int, str], int]:
    """The bits of ``features`` by leaf and register."""
    masks: dict[tuple[int, str], int] = {}
    for feature in features:
        key = feature.leaf, feature.register
        masks[key] = masks.get(key, 0) | 1 << feature.bit
    return masks
