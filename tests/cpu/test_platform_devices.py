# SPDX-License-Identifier: Apache-2.0
"""Guests that use the I/O APIC and the firmware configuration device as QEMU's PC has them."""

from __future__ import annotations

import pytest

from tests.small_guest import PAGING_MODES, run_qemu, run_small, small_guest

# The 8254 through input 2, edge; COM1's transmitter through input 4, level, until it is told off.
_INTERRUPTS = small_guest("""
        .set EOI, 0xFEE000B0
        .macro ENTRY pin, low
        movl $0x11 + 2 * \\pin, (%rbx)
        movl $0, 0x10(%rbx)
        movl $0x10 + 2 * \\pin, (%rbx)
        movl $\\low, 0x10(%rbx)
        .endm
test:   mov $0x32, %edi
        mov $on_timer, %esi
        call set_gate
        mov $0x34, %edi
        mov $on_serial, %esi
        call set_gate
        mov $0xFEE000F0, %eax
        movl $0x1FF, (%rax)                     # software-enabled
        mov $0xFEC00000, %ebx
        movl $1, (%rbx)
        mov 0x10(%rbx), %eax
        shr $16, %eax
        REPORT last_entry, %rax
        ENTRY 2, 0x32
        mov $0x30, %al                          # counter 0, mode 0: one rise at its end
        out %al, $0x43
        mov $0x10, %al
        out %al, $0x40
        out %al, $0x40
        sti
1:      pause
        cmpq $0, timer
        je 1b
        cli
        ENTRY 4, 0x8034
        mov $0x3FC, %edx
        mov $8, %al                             # OUT2 connects the line
        out %al, %dx
        mov $0x3F9, %edx
        mov $2, %al                             # transmitter empty
        out %al, %dx
        sti
2:      pause
        cmpq $3, serial
        jb 2b
        .rept 100
        nop
        .endr
        cli
        movl $0x18, (%rbx)
        mov 0x10(%rbx), %eax
        mov %eax, %r12d
        REPORT timer, timer
        REPORT serial, serial
        REPORT trigger_mode, mode
        REPORT waiting, was
        REPORT entry, %r12
        ret
on_timer:
        push %rax
        incq timer
        jmp done
on_serial:
        push %rax
        mov $0xFEE00190, %eax                   # TMR, vectors 0x20 to 0x3f
        mov (%rax), %eax
        shr $20, %eax
        and $1, %eax
        mov %rax, mode
        movl $0x18, (%rbx)
        mov 0x10(%rbx), %eax
        mov %rax, was
        incq serial
        cmpq $3, serial
        jb done
        push %rdx
        mov $0x3F9, %edx
        xor %eax, %eax
        out %al, %dx
        pop %rdx
done:   mov $EOI, %eax
        movl $0, (%rax)
        pop %rax
        iretq
        .data
timer:  .quad 0
serial: .quad 0
mode:   .quad 0
was:    .quad 0
        .text""")
_EXPECTED_INTERRUPTS = {
    "last_entry": 23, "timer": 1, "serial": 3, "trigger_mode": 1, "waiting": 0xC034,
    "entry": 0x8034,
}  # fmt: skip

_ITEMS = small_guest("""
        .macro ITEM name, key, bytes
        mov $0x510, %edx
        mov $\\key, %eax
        out %ax, %dx
        mov $0x511, %edx
        movq $0, idt
        mov $idt, %edi
        mov $\\bytes, %ecx
        rep insb
        REPORT \\name, idt
        .endm
test:   ITEM signature, 0, 4
        ITEM ram_bytes, 3, 8
        ITEM processors, 5, 2
        ITEM most_processors, 15, 2
        ITEM kernel_entry, 16, 4
        ITEM kernel_address, 7, 4
        mov $0x510, %edx
        mov $0x11, %eax
        out %ax, %dx
        mov $0x511, %edx
        mov $idt, %edi
        mov $4, %ecx
        rep insb
        mov idt, %eax
        REPORT kernel_magic, %rax
        ret""")


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_interrupts_through_the_io_apic(paging: str) -> None:
    assert run_small(_INTERRUPTS, paging).values == _EXPECTED_INTERRUPTS


@pytest.mark.qemu
def test_interrupts_through_the_io_apic_on_qemu() -> None:
    assert run_qemu(_INTERRUPTS)[1] == _EXPECTED_INTERRUPTS


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_fw_cfg(paging: str) -> None:
    values = run_small(_ITEMS, paging, memory="16M").values
    assert values["signature"] == int.from_bytes(b"QEMU", "little")
    assert values["ram_bytes"] == 16 << 20
    assert (values["processors"], values["most_processors"]) == (1, 1)
    assert values["kernel_address"] == 0x100000
    assert values["kernel_magic"] == 0x1BADB002


@pytest.mark.qemu
def test_fw_cfg_is_as_on_qemu() -> None:
    ours = run_small(_ITEMS, "nested", memory="64M").values
    assert ours == run_qemu(_ITEMS)[1]
