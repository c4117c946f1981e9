# SPDX-License-Identifier: Apache-2.0
"""32-bit protected mode: gates of 16 bits, task gates, PDPTEs that are refused."""

from __future__ import annotations

import pytest

from tests.engine.own_build import own_build_only
from tests.small_guest import PAGING_MODES, run_qemu, run_small, small_guest_32

_GP = 13
_NOTHING = 0xFFFF_FFFF

# The frame of a 16-bit gate holds IP: the code runs in a segment that begins at 1 MiB.
_GATES_16 = small_guest_32("""
test:   DESCRIPTOR 0x20, 0x100000, 0xFFFF, 0x4F9B
        mov $0x40, %edi
        mov $0x86, %eax                         # interrupt gate of 16 bits
        mov $0x20, %ecx
        mov $on_int - 0x100000, %esi
        call set_gate
        mov $13, %edi
        mov $0x87, %eax                         # trap gate of 16 bits
        mov $on_fault - 0x100000, %esi
        call set_gate
        mov %esp, %ebp
        ljmp $0x20, $1f - 0x100000
1:      int $0x40
returned:
        mov $0x7F8, %eax                        # beyond the GDT: #GP(0x7f8)
faulting:
        mov %eax, %fs
after:  ljmp $0x08, $2f
2:      sub %esp, %ebp
        REPORT stack_left, %ebp
        REPORT frame_bytes, %ebx
        movzwl int_ip, %eax
        sub $returned - 0x100000, %eax
        REPORT ip_off, %eax
        movzwl int_cs, %eax
        REPORT cs, %eax
        movzwl fault_error, %eax
        REPORT error, %eax
        movzwl fault_ip, %eax
        sub $faulting - 0x100000, %eax
        REPORT fault_ip_off, %eax
        ret
on_int: mov %ebp, %ebx
        sub %esp, %ebx
        mov (%esp), %ax
        mov %ax, int_ip
        mov 2(%esp), %ax
        mov %ax, int_cs
        iretw
on_fault:
        mov (%esp), %ax
        mov %ax, fault_error
        mov 2(%esp), %ax
        mov %ax, fault_ip
        add $2, %esp
        movw $after - 0x100000, (%esp)
        iretw
        .data
int_ip: .word 0
int_cs: .word 0
fault_error: .word 0
fault_ip: .word 0
        .text""")
_GATES_16_RIGHT = {
    "stack_left": 0, "frame_bytes": 6, "ip_off": 0, "cs": 0x20, "error": 0x7F8, "fault_ip_off": 0,
}  # fmt: skip

# Two tasks, each with page tables of its own (4 MiB pages that map memory onto itself).
_TASKS = small_guest_32("""
        .macro MAP root
        mov $\\root, %edi
        mov $0x83, %eax
        mov $4, %ecx
1:      mov %eax, (%edi)
        add $0x400000, %eax
        add $4, %edi
        loop 1b
        .endm
test:   MAP first_root
        MAP second_root
        mov $0x10, %eax
        mov %eax, %cr4
        mov $first_root, %eax
        mov %eax, %cr3
        mov %cr0, %eax
        or $0x80000000, %eax
        mov %eax, %cr0
        DESCRIPTOR 0x20, second, 103, 0x0089
        movl $first_root, tss + 0x1C            # a switch does not save it
        movl $second_root, second + 0x1C
        movl $in_task, second + 0x20
        movl $2, second + 0x24
        movl $0x1234, second + 0x28             # EAX
        movl $task_stack, second + 0x38
        movl $0x10, second + 0x48               # ES, CS, SS, DS
        movl $0x08, second + 0x4C
        movl $0x10, second + 0x50
        movl $0x10, second + 0x54
        mov $0x40, %edi
        mov $0x85, %eax
        mov $0x20, %ecx
        xor %esi, %esi
        call set_gate
        mov $13, %edi
        mov $0x85, %eax
        call set_gate
        mov $0x5678, %ebx
        int $0x40
        REPORT kept, %ebx
        REPORT switches, switches
        REPORT eax, task_eax
        REPORT tr, task_tr
        REPORT link, task_link
        REPORT nested, task_flags
        mov task_cr3, %eax
        sub $second_root, %eax
        REPORT cr3_off, %eax
        mov task_cr0, %eax
        and $8, %eax
        REPORT task_switched, %eax
        str %eax
        REPORT tr_after, %eax
        movl $by_fault, second + 0x20
        mov $0x7F8, %eax
faulting:
        mov %eax, %fs
after:  REPORT error, task_error
        REPORT switches_then, switches
        mov task_eip, %eax
        sub $faulting, %eax
        REPORT saved_eip_off, %eax
        mov %cr3, %eax
        sub $first_root, %eax
        REPORT cr3_after_off, %eax
        ret
in_task:
        incl switches
        mov %eax, task_eax
        str %eax
        mov %eax, task_tr
        movzwl second, %eax
        mov %eax, task_link
        pushf
        pop %eax
        and $0x4000, %eax
        mov %eax, task_flags
        mov %cr3, %eax
        mov %eax, task_cr3
        mov %cr0, %eax
        mov %eax, task_cr0
        iret
by_fault:
        incl switches
        pop task_error
        mov tss + 0x20, %eax
        mov %eax, task_eip
        movl $after, tss + 0x20
        iret
        .data
switches: .long 0
task_eax: .long 0
task_tr: .long 0
task_link: .long 0
task_flags: .long 0
task_cr3: .long 0
task_cr0: .long 0
task_error: .long 0
task_eip: .long 0
        .balign 16
second: .skip 104
        .bss
        .balign 4096
first_root: .skip 4096
second_root: .skip 4096
        .skip 1024
task_stack:
        .balign 4096
        .text""")
_TASKS_RIGHT = {
    "kept": 0x5678, "switches": 1, "eax": 0x1234, "tr": 0x20, "link": 0x18, "nested": 0x4000,
    "cr3_off": 0, "task_switched": 8, "tr_after": 0x18, "error": 0x7F8, "switches_then": 2,
    "saved_eip_off": 0, "cr3_after_off": 0,
}  # fmt: skip

_PDPTES = small_guest_32("""
test:   movl $directory + 1, good
        movl $0x1E6, good + 8                   # not present: nothing is reserved
        movl $directory + 1, bad
        movl $3, bad + 24                       # R/W is reserved
        movl $directory + 1, beyond
        movl $1, beyond + 8
        movl $0x100, beyond + 12                # address bit 40
        mov $directory, %edi
        mov $0x83, %eax
        mov $8, %ecx
1:      mov %eax, (%edi)
        movl $0, 4(%edi)
        add $0x200000, %eax
        add $8, %edi
        loop 1b
        mov $0x20, %eax
        mov %eax, %cr4
        mov $bad, %eax
        mov %eax, %cr3                          # without paging nothing is loaded
        mov %cr0, %ebx
        or $0x80000000, %ebx
        ATTEMPT mov %ebx, %cr0
        REPORT paging_with_bad, vector
        REPORT error, error
        mov %cr0, %eax
        shr $31, %eax
        REPORT paging, %eax
        mov $good, %eax
        mov %eax, %cr3
        ATTEMPT mov %ebx, %cr0
        REPORT paging_with_good, vector
        mov $bad, %eax
        ATTEMPT mov %eax, %cr3
        REPORT load_bad, vector
        mov $beyond, %eax
        ATTEMPT mov %eax, %cr3
        REPORT load_beyond, vector
        mov $0xFFFFF000, %eax                   # no memory there
        ATTEMPT mov %eax, %cr3
        REPORT load_nowhere, vector
        mov %cr3, %eax
        sub $good, %eax
        REPORT cr3_off, %eax
        movl $3, good + 24
        ATTEMPT mov %cr3, %eax                  # changed, but not loaded
        REPORT changed, vector
        mov $0xA0, %eax
        ATTEMPT mov %eax, %cr4                  # PGE: loads them
        REPORT by_cr4, vector
        ret
        .bss
        .balign 4096
directory: .skip 4096
good:   .skip 32
bad:    .skip 32
beyond: .skip 32
        .balign 4096
        .text""")
_PDPTES_RIGHT = {
    "paging_with_bad": _GP, "error": 0, "paging": 0, "paging_with_good": _NOTHING,
    "load_bad": _GP, "load_beyond": _GP, "load_nowhere": _GP, "cr3_off": 0, "changed": _NOTHING,
    "by_cr4": _GP,
}  # fmt: skip


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_gates_of_16_bits(paging: str) -> None:
    assert run_small(_GATES_16, paging).values == _GATES_16_RIGHT


@pytest.mark.qemu
def test_gates_of_16_bits_on_qemu() -> None:
    assert run_qemu(_GATES_16)[1] == _GATES_16_RIGHT


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_task_gates(paging: str) -> None:
    """A software interrupt, and a fault whose error code lands on the new task's stack."""
    assert run_small(_TASKS, paging).values == _TASKS_RIGHT


@pytest.mark.qemu
def test_task_gates_on_qemu() -> None:
    assert run_qemu(_TASKS)[1] == _TASKS_RIGHT


@own_build_only
@pytest.mark.parametrize("paging", PAGING_MODES)
def test_pdptes_with_reserved_bits_are_refused(paging: str) -> None:
    """SDM vol. 3A section 4.4.1. (QEMU's own translation looks at them in walks only.)"""
    assert run_small(_PDPTES, paging).values == _PDPTES_RIGHT
