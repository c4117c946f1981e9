# SPDX-License-Identifier: Apache-2.0
"""32-bit code under a 64-bit kernel enters it by SYSENTER and is left to by SYSEXIT."""

from __future__ import annotations

import pytest

from tests.engine.own_build import own_build_only
from tests.small_guest import PAGING_MODES, run_qemu, run_small, small_guest

# A code segment of 32 bits, DPL 3, behind the others: selector 0x38. SYSENTER_CS is 8, so SYSEXIT
# leaves to 0x18 and 0x20 (SDM vol. 2B, SYSEXIT), whose descriptors it does not read.
_GUEST = small_guest("""
        .macro SET msr, value
        mov $\\msr, %ecx
        mov $\\value, %eax
        xor %edx, %edx
        wrmsr
        .endm
        .macro LEFT_WITHOUT_CS
        mov $first, %edx
        mov $user_stack, %ecx
        sysexitl
        .endm
test:   mov %rsp, %r15
        mov $0x00CFFB000000FFFF, %rax
        mov %rax, gdt + 0x38
        ATTEMPT LEFT_WITHOUT_CS
        REPORT without_cs, vector
        SET 0x174, 8
        SET 0x175, stack-256
        SET 0x176, entered
        push $0x1B
        push $user_stack
        push $2
        push $0x3B
        push $first
        iretq
        .code32
first:  mov $0x11, %eax
        dec %eax                                # 0x48: in 64-bit code a prefix of the next
        mov %esp, %ebp
        sysenter
        ud2
second: mov %cs, %ebx
        mov %ss, %esi
        mov %esp, %ebp
        mov $0x21, %eax
        dec %eax
        sysenter
        ud2
        .code64
entered:
        cmpl $0x20, %eax
        je again
        REPORT first, %rax
        REPORT first_stack, %rbp
        REPORT kernel_rsp, %rsp
        mov $second, %edx
        mov $user_stack - 64, %ecx
        sysexitl
again:  mov %esi, %r12d
        REPORT second, %rax
        REPORT second_stack, %rbp
        REPORT user_cs, %rbx
        REPORT user_ss, %r12
        mov %cs, %eax
        REPORT kernel_cs, %rax
        mov %r15, %rsp
        mov $user_stack, %eax
        REPORT user_stack, %rax
        mov $stack, %eax
        REPORT stack, %rax
        ret""")


def _check(values: dict[str, int]) -> None:
    assert values["without_cs"] == 13
    assert (values["first"], values["second"]) == (0x10, 0x20)
    assert (values["user_cs"], values["user_ss"], values["kernel_cs"]) == (0x1B, 0x23, 8)
    assert values["first_stack"] == values["user_stack"]
    assert values["second_stack"] == values["user_stack"] - 64
    assert values["kernel_rsp"] == values["stack"] - 256


@own_build_only
@pytest.mark.parametrize("paging", PAGING_MODES)
def test_sysenter_and_sysexit(paging: str) -> None:
    _check(run_small(_GUEST, paging).values)


@pytest.mark.qemu
def test_sysenter_and_sysexit_on_qemu() -> None:
    _check(run_qemu(_GUEST, cpu="max,vendor=GenuineIntel")[1])  # AMD has #UD for SYSEXIT
