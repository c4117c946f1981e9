# SPDX-License-Identifier: Apache-2.0
"""Data watchpoints, INT1 and DR7.GD (Intel SDM vol. 3B chapter 17)."""

from __future__ import annotations

import pytest

from tests.small_guest import PAGING_MODES, run_small, small_guest

from .own_build import own_build_only

pytestmark = own_build_only

_DB = 1
_NOTHING = 0xFFFF_FFFF_FFFF_FFFF
_CLEAR = "mov $0x400, %eax; mov %rax, %dr7; mov $0xFFFF0FF0, %eax; mov %rax, %dr6"
_WRITES, _READS_AND_WRITES = 0xD, 0xF  # four bytes
# (watched, instruction, hit)
_WATCHED = (
    (_WRITES, "movq $1, watched", True),
    (_WRITES, "incl watched", True),
    (_WRITES, "movb $1, watched + 3", True),
    (_WRITES, "movq $1, watched - 4", True),
    (_WRITES, "mov watched, %rax", False),
    (_WRITES, "movl $1, watched + 4", False),
    (_READS_AND_WRITES, "mov watched, %rax", True),
    (_READS_AND_WRITES, "movq $1, watched", True),
    (_READS_AND_WRITES, "mov watched + 4, %eax", False),
)


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_data_watchpoints(paging: str) -> None:
    lines = ["test:"]
    for number, (kind, instruction, _) in enumerate(_WATCHED):
        lines += [
            _CLEAR,
            "mov $watched, %eax; mov %rax, %dr1",
            f"mov ${0x404 | kind << 20:#x}, %eax; mov %rax, %dr7",
            f".macro ACCESS{number}",
            instruction,
            f"behind{number}:",
            ".endm",
            f"ATTEMPT ACCESS{number}",
            f"mov %dr6, %rbx; {_CLEAR}",
            f"REPORT vector{number}, vector",
            f"REPORT status{number}, %rbx",
            f"mov fault_rip, %rax; sub $behind{number}, %rax",
            f"REPORT distance{number}, %rax",
        ]
    lines += ["mov watched, %rax", "REPORT content, %rax", "ret"]
    lines += [".data", ".balign 16", ".quad 0", "watched: .quad 0, 0"]
    values = run_small(small_guest("\n".join(lines)), paging).values
    for number, (_, instruction, hit) in enumerate(_WATCHED):
        assert values[f"vector{number}"] == (_DB if hit else _NOTHING), instruction
        assert values[f"status{number}"] & 15 == (2 if hit else 0), instruction
        if hit:  # a trap: RIP is behind the instruction
            assert values[f"distance{number}"] == 0, instruction
    assert values["content"] & 0xFFFF_FFFF == 1  # and each access was done


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_int1_and_general_detect(paging: str) -> None:
    source = f"""
test:   {_CLEAR}
        .macro INT1
        .byte 0xF1
behind:
        .endm
        ATTEMPT INT1
        REPORT int1, vector
        mov fault_rip, %rax
        sub $behind, %rax
        REPORT distance, %rax
        mov $0x2400, %eax
        mov %rax, %dr7
        .macro DETECTED
here:   mov %dr0, %rbx
        .endm
        ATTEMPT DETECTED
        REPORT detect, vector
        mov fault_rip, %rax
        sub $here, %rax
        REPORT detect_distance, %rax
        mov %dr6, %rax
        REPORT status, %rax
        mov %dr7, %rax
        REPORT control, %rax
        ret"""
    values = run_small(small_guest(source), paging).values
    assert (values["int1"], values["distance"]) == (_DB, 0)
    assert (values["detect"], values["detect_distance"]) == (_DB, 0)  # a fault
    assert values["status"] & 0x2000
    assert values["control"] & 0x2000 == 0
