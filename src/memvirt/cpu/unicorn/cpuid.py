# SPDX-License-Identifier: Apache-2.0
"""What the guest's ``cpuid`` answers: the engine's processor, less what memvirt does not model.

The engine is asked once for its own answers. Of the registers that hold feature flags a guest sees
those flags only that ``features`` offers; leaves that describe what memvirt does not have are zero;
and the hypervisor is announced (bit 31 of leaf 1 ECX, and the leaves from 0x40000000). The first of
these name VMware, whose backdoor and balloon the platform has: Linux looks for them behind this
signature only. memvirt's own name follows at 0x40000100, where hypervisors that offer another's
interface put theirs (docs/balloon.md).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import unicorn
from unicorn import x86_const

from memvirt.platform.backdoor import BUS_HZ, TIME_STAMP_HZ

from .features import Feature, flag_masks
from .registers import GENERAL_REGISTERS

# Leaf 1 EAX names family 6 model 0x1C, an in-order processor that does not speculate: which is what
# this one is. Kernels know that model, and spend nothing on mitigations for speculation (page-table
# isolation, return trampolines) unless told to.
_IN_ORDER_PROCESSOR = 0x0001_06CA
BRAND = b"memvirt software processor"  # leaves 0x80000002 to 0x80000004, 48 bytes
# Signatures: twelve bytes in EBX, ECX, EDX.
VMWARE_SIGNATURE = b"VMwareVMware"
HYPERVISOR_SIGNATURE = b"memvirt VMM "
LEAF_VMWARE = 0x4000_0000
LEAF_VMWARE_TIMING = 0x4000_0010  # the last leaf of VMware's
LEAF_HYPERVISOR = 0x4000_0100
ROW_DTYPE = np.dtype([(name, "i8") for name in ("leaf", "subleaf", "a", "b", "c", "d")])
ANY_SUBLEAF = -1
_HYPERVISOR_BIT = 31

_TIME_STAMP_LEAF = 0x15  # the highest basic leaf
# Leaves with an answer; all others are zero. 3 (serial number), 5 (MONITOR), 0xA (performance
# counters), 0xB (topology) and 0xD to 0x14 describe what this processor does not have.
_LEAVES = (
    [(leaf, 0) for leaf in (0, 1, 2, 6, _TIME_STAMP_LEAF)]
    + [(4, i) for i in range(4)]
    + [(7, 0)]
    + [(0x8000_0000 + i, 0) for i in range(9)]
)
# Registers that hold flags and nothing else.
FLAG_REGISTERS = (
    *((1, name) for name in "cd"),
    *((6, name) for name in "abcd"),
    *((7, name) for name in "bcd"),
    *((0x8000_0001, name) for name in "abcd"),
    *((0x8000_0007, name) for name in "abcd"),
    (0x8000_0008, "b"),
)


def _ask(engine: unicorn.Uc, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    engine.reg_write(x86_const.UC_X86_REG_RAX, leaf)
    engine.reg_write(x86_const.UC_X86_REG_RCX, subleaf)
    engine.emu_start(0x10_0000, 0x10_0002)
    names = ("RAX", "RBX", "RCX", "RDX")
    a, b, c, d = (
        int(engine.reg_read(getattr(x86_const, f"UC_X86_REG_{name}"))) & 0xFFFF_FFFF
        for name in names
    )
    return a, b, c, d


def answers_by_register(table: np.ndarray[Any, np.dtype[np.void]]) -> dict[tuple[int, str], int]:
    """A table's answers by leaf and register; of leaves with subleaves the first."""
    answers: dict[tuple[int, str], int] = {}
    for row in table:
        for name in "abcd":
            answers.setdefault((int(row["leaf"]), name), int(row[name]))
    return answers


def cpuid_table(
    engine: unicorn.Uc, offered: tuple[Feature, ...]
) -> np.ndarray[Any, np.dtype[np.void]]:
    """The guest's CPUID leaves as rows of ROW_DTYPE. Runs a few instructions on ``engine``."""
    masks = flag_masks(offered)
    engine.mem_map(0x10_0000, 4096)
    engine.mem_write(0x10_0000, b"\x0f\xa2")  # cpuid
    rows = []
    for leaf, subleaf in _LEAVES:
        answer = dict(zip("abcd", _ask(engine, leaf, subleaf), strict=True))
        for name in "abcd":
            if (leaf, name) in FLAG_REGISTERS:
                answer[name] &= masks.get((leaf, name), 0)
        if leaf == 0:
            answer["a"] = _TIME_STAMP_LEAF
        elif leaf == 1:
            answer["a"] = _IN_ORDER_PROCESSOR
            answer["b"] &= 0x0000_FFFF  # APIC ID 0, one logical processor
            answer["c"] |= 1 << _HYPERVISOR_BIT  # which the engine does not announce
        elif leaf == _TIME_STAMP_LEAF:
            # TSC clock = crystal * EBX / EAX. The crystal also drives the local APIC's timer, so a
            # guest need not measure either against the PIT, in loops that cost host time.
            answer = {"a": 1, "b": 1, "c": 1_000_000_000, "d": 0}
        elif 0x8000_0002 <= leaf <= 0x8000_0004:
            part = BRAND.ljust(48, b"\0")[(leaf - 0x8000_0002) * 16 :][:16]
            answer = dict(zip("abcd", struct.unpack("<4I", part), strict=True))
        elif leaf == 0x8000_0008:
            answer["a"] = 40 | 48 << 8  # physical and virtual address bits
            answer["c"] = 0
        rows.append((leaf, subleaf if leaf in (4, 7) else ANY_SUBLEAF, *answer.values()))
    for leaf, last, signature in (
        (LEAF_VMWARE, LEAF_VMWARE_TIMING, VMWARE_SIGNATURE),
        (LEAF_HYPERVISOR, LEAF_HYPERVISOR, HYPERVISOR_SIGNATURE),
    ):
        rows.append((leaf, ANY_SUBLEAF, last, *struct.unpack("<3I", signature)))
    # EAX, EBX: frequencies in kHz. ECX: hypercalls by vmcall or vmmcall, neither of which exists.
    timing = (TIME_STAMP_HZ // 1000, BUS_HZ // 1000, 0, 0)
    rows.append((LEAF_VMWARE_TIMING, ANY_SUBLEAF, *timing))
    for name in GENERAL_REGISTERS:
        engine.reg_write(getattr(x86_const, f"UC_X86_REG_{name.upper()}"), 0)
    engine.mem_unmap(0x10_0000, 4096)
    return np.array(rows, ROW_DTYPE)
