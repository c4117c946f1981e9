# SPDX-License-Identifier: Apache-2.0
"""What MOV to control registers, WRMSR, RDMSR, LGDT and LIDT refuse: #GP(0), nothing changed."""

from __future__ import annotations

import pytest

from tests.small_guest import PAGING_MODES, run_small, small_guest

from .own_build import own_build_only

_GP = 13
_NOTHING = 0xFFFF_FFFF_FFFF_FFFF
# (register, bit to flip, refused); Intel SDM vol. 3A section 2.5, CPUID as memvirt answers it
_BITS = (
    ("cr4", 12, True),  # LA57, in 64-bit mode
    ("cr4", 17, True),  # PCIDE, which CPUID hides
    ("cr4", 18, True),  # OSXSAVE, likewise
    ("cr4", 22, True),  # PKE, likewise
    ("cr4", 13, True),  # VMXE
    ("cr4", 31, True),
    ("cr4", 40, True),
    ("cr4", 5, True),  # PAE cannot be cleared in IA-32e mode
    ("cr4", 7, False),  # PGE
    ("cr4", 3, False),  # DE
    ("cr0", 0, True),  # PG without PE
    ("cr0", 31, True),  # paging off in 64-bit code
    ("cr0", 29, True),  # NW without CD
    ("cr0", 33, True),
    ("cr0", 16, False),  # WP
    ("cr0", 18, False),  # AM
    ("cr3", 41, True),  # beyond the physical address
    ("cr3", 63, True),
    ("cr3", 4, False),  # PCD
    ("cr8", 4, True),
)
_NOT_CANONICAL = 1 << 47
# (MSR, value, refused)
_MSRS = (
    (0xC000_0080, 0x0D01, False),  # EFER as it is, but LMA
    (0xC000_0080, 0x0C01, True),  # LME while paging is on
    (0xC000_0080, 0x2D01, True),  # reserved
    (0x277, 0x0007_0406_0007_0406, False),  # the PAT's value after a reset
    (0x277, 0x0007_0406_0007_0402, True),
    (0x277, 0x0807_0406_0007_0406, True),
    (0xC000_0082, _NOT_CANONICAL, True),  # LSTAR
    (0xC000_0082, -1 << 47, False),
    (0xC000_0083, _NOT_CANONICAL, True),  # CSTAR
    (0xC000_0100, _NOT_CANONICAL, True),  # FS base
    (0xC000_0101, _NOT_CANONICAL, True),  # GS base
    (0xC000_0102, _NOT_CANONICAL, True),  # KERNEL_GS_BASE
    (0xC000_0102, -1 << 47, False),
    (0x176, _NOT_CANONICAL, True),  # SYSENTER_EIP
    (0x1B, 0xFEE0_0D00, True),  # x2APIC mode, which CPUID hides
    (0x1234, 0, True),  # there is no such MSR
    (0x2FF, 0, True),  # MTRR, which CPUID hides
)


@own_build_only
@pytest.mark.parametrize("paging", PAGING_MODES)
def test_bits_of_control_registers(paging: str) -> None:
    lines = ["test:"]
    for number, (register, bit, _) in enumerate(_BITS):
        lines += [
            f"mov %{register}, %rbp; mov %rbp, %rax; btc ${bit}, %rax",
            f"ATTEMPT mov %rax, %{register}",
            f"mov %{register}, %rbx; mov %rbp, %{register}",
            "xor %rbp, %rbx",
            f"REPORT vector{number}, vector",
            f"REPORT error{number}, error",
            f"REPORT changed{number}, %rbx",
        ]
    values = run_small(small_guest("\n".join([*lines, "ret"])), paging).values
    for number, (register, bit, refused) in enumerate(_BITS):
        what = f"{register} bit {bit}"
        assert values[f"vector{number}"] == (_GP if refused else _NOTHING), what
        assert values[f"error{number}"] == (0 if refused else _NOTHING), what
        assert values[f"changed{number}"] == (0 if refused else 1 << bit), what


@own_build_only
@pytest.mark.parametrize("paging", PAGING_MODES)
def test_model_specific_registers(paging: str) -> None:
    lines = ["test:"]
    for number, (msr, value, _) in enumerate(_MSRS):
        word = value & (1 << 64) - 1
        lines += [
            f"mov ${msr:#x}, %ecx; mov ${word & 0xFFFF_FFFF:#x}, %eax; mov ${word >> 32:#x}, %edx",
            "ATTEMPT wrmsr",
            f"REPORT vector{number}, vector",
        ]
    lines += [
        "mov $0x1234, %ecx",
        "ATTEMPT rdmsr",
        "REPORT unknown, vector",
        "mov $0x1B, %ecx",
        "ATTEMPT rdmsr",
        "mov %eax, %ebx",
        "REPORT apic_base, %rbx",
    ]
    values = run_small(small_guest("\n".join([*lines, "ret"])), paging).values
    for number, (msr, value, refused) in enumerate(_MSRS):
        assert values[f"vector{number}"] == (_GP if refused else _NOTHING), f"{msr:#x}, {value:#x}"
    assert values["unknown"] == _GP
    assert values["apic_base"] == 0xFEE0_0900


@own_build_only
@pytest.mark.parametrize("paging", PAGING_MODES)
def test_descriptor_tables_have_canonical_bases(paging: str) -> None:
    source = """
test:   ATTEMPT lidt wrong
        REPORT idt, vector
        ATTEMPT lgdt wrong
        REPORT gdt, vector
        ATTEMPT ud2
        REPORT alive, vector
        ret
        .data
wrong:  .word 4095
        .quad 0x800000000000"""
    values = run_small(small_guest(source), paging).values
    assert values == {"idt": _GP, "gdt": _GP, "alive": 6}


_APIC = "mov $0xFEE00000, %r8d; movl $0x1FF, 0x0F0(%r8)"
_DELIVERED = """
        mov $0x30, %edi
        mov $arrived, %esi
        call set_gate
        mov $2, %edi
        mov $nmi, %esi
        call set_gate
"""
_HANDLERS = """
arrived: incl count
        movl $0, 0x0B0(%r8)
        iretq
nmi:    incl nmis
        cmpl $1, nmis
        jne 1f
        movl $0x4400, 0x300(%r8)        # another NMI: blocked until IRET
        nop
        nop
        mov nmis, %eax
        mov %eax, inside
1:      iretq
        .data
count:  .quad 0
nmis:   .quad 0
inside: .quad 0
"""


@own_build_only
@pytest.mark.parametrize("paging", PAGING_MODES)
def test_cr8_is_the_task_priority(paging: str) -> None:
    source = f"""
test:   {_DELIVERED}
        {_APIC}
        mov $5, %eax
        mov %rax, %cr8
        mov %cr8, %rbx
        REPORT cr8, %rbx
        mov 0x080(%r8), %ebx
        REPORT tpr, %rbx
        movl $0x70, 0x080(%r8)
        mov %cr8, %rbx
        REPORT from_tpr, %rbx
        mov $15, %eax
        mov %rax, %cr8
        movl $0x44030, 0x300(%r8)       # a fixed interrupt to itself
        sti
        nop
        nop
        jmp 1f
1:      mov count, %rbx
        REPORT masked, %rbx
        xor %eax, %eax
        mov %rax, %cr8
        jmp 1f
1:      nop
        mov count, %rbx
        REPORT unmasked, %rbx
        cli
        ret
{_HANDLERS}"""
    values = run_small(small_guest(source), paging).values
    assert values == {"cr8": 5, "tpr": 0x50, "from_tpr": 7, "masked": 0, "unmasked": 1}


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_nmi_arrives_and_blocks_until_iret(paging: str) -> None:
    source = f"""
test:   {_DELIVERED}
        {_APIC}
        movl $0, 0x310(%r8)
        movl $0x4400, 0x300(%r8)
        jmp 1f
1:      nop
        mov inside, %rbx
        REPORT inside, %rbx
        mov nmis, %rbx
        REPORT all, %rbx
        ret
{_HANDLERS}"""
    values = run_small(small_guest(source), paging).values
    assert values == {"inside": 1, "all": 2}
