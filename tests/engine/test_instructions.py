# SPDX-License-Identifier: Apache-2.0
"""Instructions that the package index's build executes wrongly: one test for each mended change."""

from __future__ import annotations

import pytest

from tests.small_guest import PAGING_MODES, run_small, small_guest

from .own_build import own_build_only

pytestmark = own_build_only

_NOTHING = 0xFFFF_FFFF_FFFF_FFFF
_GP = 13
_SSE = "mov $0x620, %eax; mov %rax, %cr4"  # PAE, OSFXSR, OSXMMEXCPT


@pytest.mark.parametrize("paging", PAGING_MODES)
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize(
    ("instruction", "low"), [("lock cmpxchg16b idt", "rax"), ("cmpxchg8b idt", "eax")]
)
def test_compare_exchange_changes_zf_alone(
    instruction: str, low: str, equal: bool, paging: str
) -> None:
    source = f"""
test:   movq $0, idt
        movq $0, idt + 8
        xor %eax, %eax
        xor %edx, %edx
        mov ${0 if equal else 1}, %{low}
        xor %ebx, %ebx
        xor %ecx, %ecx
        mov $0x7FFFFFFF, %esi
        add $1, %esi                            # SF, OF, AF, PF
        {instruction}
        pushfq
        pop %r15
        REPORT flags, %r15
        ret"""
    flags = run_small(small_guest(source), paging).values["flags"]
    assert flags & 0x8D5 == 0x894 | (0x40 if equal else 0)


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_sysenter(paging: str) -> None:
    source = """
        .macro SECOND_IN_ITS_BLOCK
        nop
        sysenter
        .endm
test:   ATTEMPT SECOND_IN_ITS_BLOCK
        REPORT without_cs, vector
        REPORT error, error
        lea 1b(%rip), %rax
        mov $0x174, %ecx
        mov $8, %eax
        xor %edx, %edx
        wrmsr
        mov $0x175, %ecx
        mov $stack - 64, %eax
        wrmsr
        mov $0x176, %ecx
        mov $entered, %eax
        wrmsr
        mov $user, %edi
        jmp go_user
user:   nop
1:      sysenter
        ud2
entered:
        mov %cs, %eax
        REPORT cs, %rax
        mov %ss, %eax
        REPORT ss, %rax
        REPORT rsp, %rsp
        pushfq
        pop %rax
        REPORT flags, %rax
        mov $stack - 64, %eax
        REPORT wanted_rsp, %rax
        VERDICT 0x10"""
    values = run_small(small_guest(source), paging).values
    assert (values["without_cs"], values["error"]) == (_GP, 0)
    assert (values["cs"], values["ss"]) == (8, 0x10)
    assert values["rsp"] == values["wanted_rsp"]
    assert values["flags"] & 0x200 == 0


_MXCSR = {  # name: (before, instructions, flags after)
    "inexact": (0x1F80, "divss %xmm3, %xmm1", 0x20),
    "invalid": (0x1F80, "divss %xmm0, %xmm0", 1),
    "division_by_zero": (0x1F80, "divss %xmm0, %xmm1", 4),
    "overflow": (0x1F80, "mulss %xmm4, %xmm4", 0x28),
    "underflow": (0x1F80, "mulss %xmm5, %xmm5", 0x30),
    "flushed_to_zero": (0x9F80, "mulss %xmm5, %xmm5", 0x30),
    "exact": (0x1F80, "addss %xmm1, %xmm1", 0),
    "kept": (0x1F81, "addss %xmm1, %xmm1", 1),
    "approximate": (0x1F80, "rcpss %xmm3, %xmm1; rsqrtss %xmm3, %xmm1", 0),
}


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_mxcsr_flags(paging: str) -> None:
    lines = [f"test: {_SSE}"]
    for name, (before, instructions, _) in _MXCSR.items():
        lines += [
            f"movl ${before:#x}, idt; ldmxcsr idt",
            "xorps %xmm0, %xmm0",
            *(
                f"mov ${bits:#x}, %eax; movd %eax, %xmm{number}"
                for number, bits in ((1, 0x3F800000), (3, 0x40400000), (4, 0x7F000000),
                                     (5, 0x00800001))
            ),
            instructions,
            "movl $0, idt; stmxcsr idt; mov idt, %eax",
            f"REPORT {name}, %rax",
            "fxsave fx_area; mov fx_area + 24, %eax",
            f"REPORT {name}_saved, %rax",
        ]  # fmt: skip
    lines += ["ret", ".bss", ".balign 16", "fx_area: .skip 512"]
    values = run_small(small_guest("\n".join(lines)), paging).values
    for name, (before, _, flags) in _MXCSR.items():
        assert values[name] == before | flags, name
        assert values[f"{name}_saved"] == before | flags, name


_ALIGNED = (
    "movaps idt + 8, %xmm0", "movaps %xmm0, idt + 8", "movdqa idt + 1, %xmm0",
    "movntps %xmm0, idt + 8", "addps idt + 8, %xmm0", "pxor idt + 4, %xmm0",
    "pshufb idt + 8, %xmm0", "palignr $1, idt + 8, %xmm0", "movntdqa idt + 8, %xmm0",
    "movshdup idt + 8, %xmm0", "cvtpd2ps idt + 8, %xmm0",
)  # fmt: skip
_UNALIGNED = (
    "movups idt + 8, %xmm0", "movupd %xmm0, idt + 1", "movdqu idt + 1, %xmm0",
    "movdqu %xmm0, idt + 3", "lddqu idt + 1, %xmm0", "addss idt + 1, %xmm0",
    "addsd idt + 1, %xmm0", "pcmpistri $0, idt + 1, %xmm0", "roundss $0, idt + 1, %xmm0",
    "cvtps2pd idt + 1, %xmm0", "cvtdq2pd idt + 1, %xmm0", "movhps idt + 1, %xmm0",
    "cvtps2pi idt + 1, %mm0", "pmovzxbw idt + 1, %xmm0", "movaps idt + 16, %xmm0",
)  # fmt: skip


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_alignment_of_sse_operands(paging: str) -> None:
    lines = [f"test: {_SSE}", "movabs $-1, %rax", "mov %rax, error"]
    for number, instruction in enumerate((*_ALIGNED, *_UNALIGNED)):
        lines += [f"ATTEMPT {instruction}", f"REPORT case{number}, vector"]
    values = run_small(small_guest("\n".join([*lines, "ret"])), paging).values
    got = [values[f"case{number}"] for number in range(len(_ALIGNED) + len(_UNALIGNED))]
    wanted = [_GP] * len(_ALIGNED) + [_NOTHING] * len(_UNALIGNED)
    names = (*_ALIGNED, *_UNALIGNED)
    assert [n for n, a, b in zip(names, got, wanted, strict=True) if a != b] == []


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_lock_of_bit_instructions(paging: str) -> None:
    """SDM vol. 2A, LOCK: #UD on a register, and before BT. Stock translators end the process."""
    operands = {"bts": 1, "btr": 2, "btc": 3}
    attempts = [f".byte 0xF0; {name} %eax, %ebx" for name in ("bt", *operands)]
    attempts += [f".byte 0xF0; {name} $3, %ebx" for name in ("bt", *operands)]
    attempts += [".byte 0xF0; btw %ax, idt", ".byte 0xF0; btl $3, idt"]
    reports = "\n".join(
        f"""    .macro ATTEMPT_{number}
        {attempt}
        .endm
        ATTEMPT ATTEMPT_{number}
        REPORT register_{number}, vector"""
        for number, attempt in enumerate(attempts)
    )
    source = f"""
test:
{reports}
        movl $5, idt
        lock btsl $1, idt
        lock btrl $0, idt
        mov $35, %ecx
        lock btcl %ecx, idt - 4
        mov idt, %eax
        REPORT memory, %rax
        ret"""
    values = run_small(small_guest(source), paging).values
    assert values.pop("memory") == (5 | 2) & ~1 ^ 8
    assert set(values.values()) == {6}
    assert len(values) == len(attempts)
