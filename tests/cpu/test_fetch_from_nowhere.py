# SPDX-License-Identifier: Apache-2.0
"""Code where no memory is: the open bus reads as ones, FF FF, which is no instruction: #UD."""

from __future__ import annotations

import pytest

from memvirt import EndReason
from tests.small_guest import PAGING_MODES, run_small, small_guest

_PLACES = {
    "beyond_memory": 0x200_0000,
    "hole": 0xD000_0000,
    "io_apic": 0xFEC0_0000,
    "local_apic": 0xFEE0_0000,
}


@pytest.mark.parametrize("paging", PAGING_MODES)
@pytest.mark.parametrize("place", _PLACES)
def test_a_guest_that_handles_it_goes_on(place: str, paging: str) -> None:
    source = f"""
        .macro GO
        mov ${_PLACES[place]:#x}, %eax
        call *%rax
        .endm
test:   ATTEMPT GO
        REPORT vector, vector
        REPORT rip, fault_rip
        ret"""
    ran = run_small(small_guest(source), paging)
    assert ran.reason is EndReason.SUCCESS
    assert ran.values == {"vector": 6, "rip": _PLACES[place]}


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_an_instruction_that_runs_out_of_memory(paging: str) -> None:
    """Its first two bytes are the last of RAM: it begins there, and so does the fault."""
    source = """
        .set LAST, 0xFFFFFE
        .macro GO
        mov $LAST, %eax
        call *%rax
        .endm
test:   movw $0x00B8, LAST                      # mov $..., %eax
        ATTEMPT GO
        REPORT vector, vector
        REPORT rip, fault_rip
        ret"""
    assert run_small(small_guest(source), paging).values == {"vector": 6, "rip": 0xFFFFFE}


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_one_that_does_not_is_reported(paging: str) -> None:
    source = "test: lidt idt + 16; mov $0x2000000, %eax; jmp *%rax"
    ran = run_small(small_guest(source), paging)
    assert ran.reason is EndReason.TRIPLE_FAULT
    assert "#UD" in ran.outcome.detail
    assert "RIP 0x2000000" in ran.outcome.detail
