# SPDX-License-Identifier: Apache-2.0
"""Timers come in time in loops of instructions that take long: RDTSC, IN, OUT."""

from __future__ import annotations

import pytest

from memvirt import Machine, VirtualMachine
from tests.small_guest import PAGING_MODES, flat_guest, run_small, small_guest

# What a turn of the loop does, and the nanoseconds that it takes at most.
_LOOPS = {
    "nothing": ("nop", 10),
    "rdtsc": ("rdtsc", 300),
    "in": ("in $0x61, %al", 600),
    "out": ("out %al, $0x80", 600),
}
_TURNS = 4
"""How many turns a timer may come too late: it is looked at between two blocks."""

_GUEST = """
test:   mov $0xF0, %edi
        mov $expired, %esi
        call set_gate
        mov $0xFEE000F0, %ebx
        movl $0x1FF, (%rbx)                     # the local APIC on
        mov $0xFEE003E0, %ebx
        movl $0xB, (%rbx)                       # divide by 1: a count is a nanosecond
        mov $0xFEE00320, %ebx
        movl $0xF0, (%rbx)
        sti
        rdtsc
        shl $32, %rdx
        or %rax, %rdx
        mov %rdx, %r8
        mov $0xFEE00380, %ebx
        movl $100000, (%rbx)
1:      {turn}
        cmpb $0, done
        je 1b
        cli
        sub %r8, %r9
        REPORT after, %r9
        ret
expired: rdtsc
        shl $32, %rdx
        or %rax, %rdx
        mov %rdx, %r9
        movb $1, done
        iretq
        .data
done:   .byte 0
        .text
"""


@pytest.mark.parametrize("paging", PAGING_MODES)
@pytest.mark.parametrize("loop", _LOOPS)
def test_a_timer_is_not_late(loop: str, paging: str) -> None:
    turn, nanoseconds = _LOOPS[loop]
    after = run_small(small_guest(_GUEST.format(turn=turn)), paging).values["after"]
    assert 100_000 <= after <= 100_000 + 3000 + _TURNS * nanoseconds


@pytest.mark.parametrize("paging", PAGING_MODES)
@pytest.mark.parametrize("loop", _LOOPS)
def test_a_quantum_is_not_too_long(loop: str, paging: str) -> None:
    turn, nanoseconds = _LOOPS[loop]
    with VirtualMachine(Machine("64M"), memory="4M", paging=paging) as vm:
        vm.load(flat_guest(f"1: {turn}\n jmp 1b"), protocol="flat")
        for quanta in range(1, 6):
            assert vm.run_quantum(1_000_000) is None
            assert vm.virtual_ns <= quanta * (1_000_000 + _TURNS * nanoseconds) + 5000
