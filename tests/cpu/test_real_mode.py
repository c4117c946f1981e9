# SPDX-License-Identifier: Apache-2.0
"""Interrupts in real mode, and what is said of guests that die."""

from __future__ import annotations

import pytest

from memvirt import EndReason
from tests.small_guest import PAGING_MODES, Ran, assemble, run_small, small_guest

# From 32-bit protected mode to real mode, with a Multiboot header; then BODY at 0000:8000.
_TO_REAL_MODE = """
        .code32
        .text
header: .long   0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000)
        .long   header, 0x100000, 0, 0, start
        .globl  start
start:  mov     $low, %esi
        mov     $0x8000, %edi
        mov     $low_end - low, %ecx
        rep movsb
        lgdt    gdt_pointer
        lidt    ivt_pointer
        ljmp    $8, $0x8000
        .balign 8
gdt:    .quad   0, 0x000F9B000000FFFF, 0x000093000000FFFF
gdt_pointer: .word 23
        .long   gdt
ivt_pointer: .word 0x3FF
        .long   0
low:    .code16
        mov     $16, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     %cr0, %eax
        and     $~1, %al
        mov     %eax, %cr0
        ljmp    $0, $0x8000 + real - low
real:   xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7000, %sp
        BODY
low_end:
"""


def _run_real(body: str, paging: str) -> Ran:
    source = f".macro BODY\n{body}\n.endm\n{_TO_REAL_MODE}"
    return run_small(assemble(source), paging, protocol="multiboot")


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_interrupts_go_through_the_vector_table(paging: str) -> None:
    body = """
        movw    $0x1003, 0x44           # int 0x11: 0123:1003, which pushes nothing but the frame
        movw    $0x0123, 0x46
        movb    $0x9C, 0x2233           # at 0x1230 + 0x1003: pushf; pop %bx; mov %cs, %dx; iret
        movb    $0x5B, 0x2234
        movw    $0xCA8C, 0x2235
        movb    $0xCF, 0x2237
        sti
        int     $0x11
        pushf
        pop     %cx
        mov     $0x10, %al
        cmp     $0x0123, %dx
        jne     1f
        test    $0x200, %bx             # IF is clear in the handler
        jnz     1f
        test    $0x200, %cx             # and set behind it
        jz      1f
        cmp     $0x7000, %sp
        je      2f
1:      mov     $0x11, %al
2:      out     %al, $0xF4
        hlt
"""
    ran = _run_real(body, paging)
    assert ran.reason is EndReason.SUCCESS, ran.outcome


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_a_call_of_the_bios_is_one_clear_line(paging: str) -> None:
    ran = _run_real("mov $0x0E41, %ax\nint $0x10\nhlt\n", paging)
    assert ran.reason is EndReason.NO_FIRMWARE
    assert ran.outcome.detail == "int 0x10 in real mode, and there is no BIOS"


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_a_triple_fault_names_what_came_first(paging: str) -> None:
    source = """
test:   lidt none
        mov $0x7FFF00000000, %rax
        movq $1, (%rax)
        .data
none:   .word 0
        .quad 0"""
    ran = run_small(small_guest(source), paging)
    assert ran.reason is EndReason.TRIPLE_FAULT
    assert ran.outcome.detail.startswith("#PF(0x2) at gVA 0x7fff00000000, RIP 0x10")
    assert "its delivery raised #GP(0x73)" in ran.outcome.detail
