# SPDX-License-Identifier: Apache-2.0
"""What a guest that shows a CPUID feature is made of: the states it is tried in, and its report."""

from __future__ import annotations

from dataclasses import dataclass

NOTHING = 0xFFFF_FFFF_FFFF_FFFF  # the "vector" of an instruction that raises nothing
DB, UD, NM, GP, PF, MF = 1, 6, 7, 13, 14, 16
# CR0 and CR4 as the states below want them; CR4.PAE and OSFXSR, CR0.EM and TS.
_STATES = {
    "osfxsr_clear": (0x20, 0),
    "task_switched": (0x620, 8),
    "emulated": (0x620, 4),
    "enabled": (0x620, 0),
}

# A page of 2 MiB of the guest's own: at 1 GiB, on the second 2 MiB of memory.
PAGE, PAGE_FRAME, PAGE_ENTRY = 0x4000_0000, 0x20_0000, "directory + 512 * 8"


@dataclass(frozen=True)
class FeatureCase:
    """A guest that uses a feature, and the values it must report by name."""

    source: str
    wanted: dict[str, int]
    bits: int = 64


def _enter(state: str) -> str:
    cr4, cr0 = _STATES[state]
    return (
        f"mov ${cr4:#x}, %eax; mov %rax, %cr4; "
        f"mov %cr0, %rax; and $~0xC, %eax; or ${cr0}, %eax; mov %rax, %cr0"
    )


def case(lines: list[str], wanted: dict[str, int]) -> FeatureCase:
    return FeatureCase("\n".join(["test:", *lines, "ret"]), wanted)


def in_states(instruction: str, raised: dict[str, int]) -> tuple[list[str], dict[str, int]]:
    """Lines that attempt it in every state and leave the last, "enabled"; states not in ``raised``
    raise nothing."""
    lines: list[str] = []
    for state in _STATES:
        lines += [_enter(state), f"ATTEMPT {instruction}", f"REPORT {state}, vector"]
    return lines, {state: raised.get(state, NOTHING) for state in _STATES}


SSE_RAISES = {"osfxsr_clear": UD, "task_switched": NM, "emulated": UD}
MMX_RAISES = {"task_switched": NM, "emulated": UD}
X87_RAISES = {"task_switched": NM, "emulated": NM}


def load(register: str, value: int) -> list[str]:
    return [
        f"movabs ${value & NOTHING:#x}, %rax; mov %rax, scratch",
        f"movabs ${value >> 64:#x}, %rax; mov %rax, scratch + 8",
        f"movdqu scratch, {register}",
    ]


SCRATCH = [".bss", ".balign 64", "scratch: .skip 1024", ".text"]
