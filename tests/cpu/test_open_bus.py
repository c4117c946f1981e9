# SPDX-License-Identifier: Apache-2.0
"""Where no memory and no device is, loads read ones and stores go nowhere: in every paging mode."""

from __future__ import annotations

import pytest

from memvirt import EndReason
from tests.small_guest import PAGING_MODES, flat_guest, run_small, small_guest, small_guest_32

_PLACES = {
    "behind_memory": 0x0100_0000,
    "hole": 0xD000_0000,
    "before_the_local_apic": 0xFEDF_FFF8,
    "behind_the_local_apic": 0xFEE0_1000,
    "last_of_32_bits": 0xFFFF_FFF8,
}


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_the_open_bus(paging: str) -> None:
    reports = "\n".join(
        f"mov ${at:#x}, %eax\n movq $5, (%rax)\n mov (%rax), %rdx\n REPORT {name}, %rdx"
        for name, at in _PLACES.items()
    )
    ran = run_small(small_guest(f"test: {reports}\n ret"), paging)
    assert ran.reason is EndReason.SUCCESS
    assert ran.values == dict.fromkeys(_PLACES, (1 << 64) - 1)


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_a_load_that_runs_out_of_memory(paging: str) -> None:
    """Its bytes beyond the last page are ones; those before it are memory's."""
    source = """
test:   movb $0x12, 0xFFFFFF
        mov 0xFFFFFF, %eax
        REPORT value, %rax
        ret"""
    assert run_small(small_guest(source), paging).values == {"value": 0xFFFF_FF12}


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_addresses_above_4_gib(paging: str) -> None:
    """Through tables of the guest: the page at 4 MiB leads to the end of physical memory."""
    image = flat_guest(
        """ mov %cr3, %rbx
            and $~0xFFF, %rbx
            mov (%rbx), %rbx
            and $~0xFFF, %rbx
            mov (%rbx), %rbx                    # the page directory
            and $~0xFFF, %rbx
            mov $0xFFFFE00083, %rcx
            mov %rcx, 16(%rbx)
            mov %cr3, %rax
            mov %rax, %cr3
            movq $5, 0x400000
            cmpq $-1, 0x400000
            mov $0x11, %ecx
            mov $0x10, %eax
            cmovne %ecx, %eax
            out %al, $0xF4
            hlt"""
    )
    assert run_small(image, paging, protocol="flat").reason is EndReason.SUCCESS


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_linear_addresses_of_32_bits_wrap(paging: str) -> None:
    """An access across 4 GiB goes on at 0 (SDM vol. 3A section 3.3), with and without paging."""
    source = """
test:   movw $0x1234, 0
        mov 0xFFFFFFFE, %eax
        REPORT value, %eax
        movl $0x56781234, 0xFFFFFFFE
        movzwl 0, %eax
        REPORT stored, %eax
        ret"""
    ran = run_small(small_guest_32(source), paging)
    assert ran.reason is EndReason.SUCCESS
    assert ran.values == {"value": 0x1234_FFFF, "stored": 0x5678}
