# SPDX-License-Identifier: Apache-2.0
"""Accesses that take the engine's slow path: they miss in its TLB, cross two pages, or store to a
page with translated code (engine/changes 18). The same guest in every mode, and on QEMU."""

from __future__ import annotations

import pytest

from tests.small_guest import PAGING_MODES, run_qemu, run_small, small_guest

# Each pass begins with an empty TLB. %r8 counts what was read back otherwise than written.
_CROSSING = """
test:   xor %r8d, %r8d
        mov $7, %ecx                    # bytes before the border: 1 to 7
1:      mov $0x801000, %ebx
        sub %rcx, %rbx
        movabs $0x1122334455667788, %rax
        lea (%rax,%rcx), %rax
        mov %cr3, %rdx
        mov %rdx, %cr3
        mov %rax, (%rbx)                # both pages miss
        mov %rdx, %cr3
        mov (%rbx), %rsi
        cmp %rsi, %rax
        je 2f
        inc %r8d
2:      mov %rdx, %cr3
        mov 0x801000, %sil              # the second page alone: the bytes behind the border
        mov %rax, %rdi
        push %rcx
        shl $3, %ecx
        shr %cl, %rdi
        pop %rcx
        cmp %dil, %sil
        je 3f
        inc %r8d
3:      dec %ecx
        jnz 1b
        REPORT mismatches, %r8
        mov $0x800FF9, %ebx
        REPORT first, (%rbx)
"""
# A store that begins in the page before some code changes its first bytes, over and over.
_PATCHING = """
        movw $0x9090, 0x900FFE          # nop; nop; mov $imm, %eax; ret
        movb $0xB8, 0x901000
        movb $0xC3, 0x901005
        xor %r9d, %r9d
        mov $40, %r10d
4:      mov %r10d, %eax
        shl $24, %rax
        movabs $0xB89090, %rdx          # nop, nop, opcode, then the low byte of the operand
        or %rdx, %rax
        mov %eax, 0x900FFE
        mov $0x900FFE, %ebx
        call *%rbx
        and $0xFF, %eax
        add %rax, %r9
        cmp $20, %r10d
        jne 5f
        mov %cr3, %rdx
        mov %rdx, %cr3
5:      dec %r10d
        jnz 4b
        REPORT patched, %r9
        mov $0xFEE00000, %ebx           # a device answers, as wide as it is asked
        mov %cr3, %rdx
        mov %rdx, %cr3
        mov 0x20(%rbx), %eax
        mov %eax, %eax
        REPORT apic_id, %rax
        ret
"""


def check(values: dict[str, int]) -> None:
    """What the guest reports, against the same stores made here."""
    memory = bytearray(16)
    for before in range(7, 0, -1):
        memory[7 - before : 15 - before] = (0x1122334455667788 + before).to_bytes(8, "little")
    assert values["mismatches"] == 0
    assert values["first"] == int.from_bytes(memory[:8], "little")
    assert values["patched"] == sum(range(1, 41))
    assert values["apic_id"] == 0


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_what_is_written_is_read_however_it_is_reached(paging: str) -> None:
    check(run_small(small_guest(_CROSSING + _PATCHING), paging).values)


def test_qemu_says_the_same() -> None:
    check(run_qemu(small_guest(_CROSSING + _PATCHING))[1])
