# SPDX-License-Identifier: Apache-2.0
"""What exceptions push and report, single steps, how long interrupts wait behind STI and MOV SS.

What is right is the Intel SDM's: vol. 3A sections 6.3 to 6.13 (error codes), 6.8 (interrupts held
back), vol. 3B section 17.3 (RF, single steps). QEMU 7.2 gives the same traces, but that it takes no
single step behind STI, pushes no RF, and multiplies the vector in error codes by 16.
"""

from __future__ import annotations

import re

import pytest

from tests.engine.own_build import own_build_only
from tests.small_guest import PAGING_MODES, run_small, small_guest

_DE, _BP, _UD, _DF, _NP, _SS, _GP, _PF = 0, 3, 6, 8, 11, 12, 13, 14
_NOTHING = 0xFFFF_FFFF_FFFF_FFFF
_RF = 1 << 16
_NO_PAGE = "movq $0, directory + 8; mov %cr3, %rax; mov %rax, %cr3"  # at 2 MiB
_READ_ONLY = "movq $0x200085, directory + 8; mov %cr3, %rax; mov %rax, %cr3"
_PAGE_AGAIN = "movq $0x200087, directory + 8; mov %cr3, %rax; mov %rax, %cr3"
_NON_CANONICAL = "movabs $0x800000000000, %rax"
_ABSENT_DATA = "movabs $0x00CF13000000FFFF, %rax; mov %rax, gdt + 0x38; mov $0x38, %eax"
# (before, instruction, vector, error code)
_FAULTS: tuple[tuple[str, str, int, int], ...] = (
    ("mov $0x50, %eax", "mov %eax, %ds", _GP, 0x50),
    ("mov $4, %eax", "mov %eax, %ds", _GP, 4),
    (_ABSENT_DATA, "mov %eax, %ss", _SS, 0x38),
    (_ABSENT_DATA, "mov %eax, %ds", _NP, 0x38),
    ("mov $0x10, %eax", "ltr %ax", _GP, 0x10),
    ("mov $0x28, %eax", "ltr %ax", _GP, 0x28),  # busy
    ("mov $0x10, %eax", "lldt %ax", _GP, 0x10),
    ("push $0x50; push $0x1000", "lretq", _GP, 0x50),
    ("push $0; push $0x1000", "lretq", _GP, 0),
    ("push $0x10; push $stack - 256; push $2; push $0x50; push $0x1000", "iretq", _GP, 0x50),
    ("push $0x50; push $stack - 256; push $2; push $8; push $0x1000", "iretq", _GP, 0x50),
    (_NON_CANONICAL, "mov (%rax), %ebx", _GP, 0),
    (_NON_CANONICAL, "jmp *%rax", _GP, 0),
    ("movb $0x6E, idt + 0x50 * 16 + 5", "int $0x50", _NP, 0x50 << 3 | 2),
    ("movb $0xE5, idt + 0x51 * 16 + 5", "int $0x51", _GP, 0x51 << 3 | 2),  # no gate of 64-bit mode
    ("movw $0x58, idt + 0x52 * 16 + 2", "int $0x52", _GP, 0x58),
    ("movw $0, idt + 0x53 * 16 + 2", "int $0x53", _GP, 0),
    (_NO_PAGE, "mov 0x200123, %eax", _PF, 0),
    (_NO_PAGE, "mov 0x1FFFFE, %rax", _PF, 0),
    (_NO_PAGE, "movl $1, 0x200123", _PF, 2),
    (_READ_ONLY, "movl $1, 0x200123", _PF, 3),
    (_PAGE_AGAIN + "; xor %ecx, %ecx", "div %ecx", _DE, _NOTHING),
    ("", "ud2", _UD, _NOTHING),
    ("", "int3", _BP, _NOTHING),
    ("xor %ecx, %ecx", "xgetbv", _UD, _NOTHING),
    ("", ".rept 15; .byte 0x66; .endr; nop", _GP, 0),  # 16 bytes
)
_MENDED: tuple[tuple[str, str, int, int], ...] = (
    ("movabs $0x100000000, %rax", "mov %rax, %dr6", _GP, 0),
    ("movabs $0x100000000, %rax", "mov %rax, %dr7", _GP, 0),
    ("mov $0x620, %eax; mov %rax, %cr4", "vaddps %xmm1, %xmm2, %xmm3", _UD, _NOTHING),
    ("", "vpermd %ymm1, %ymm2, %ymm3", _UD, _NOTHING),
    ("", "vpalignr $1, %xmm1, %xmm2, %xmm3", _UD, _NOTHING),
    ("", "{vex3} vpxor %xmm1, %xmm2, %xmm3", _UD, _NOTHING),
    ("mov $3, %edx", "shlx %edx, %esi, %edi", _NOTHING, _NOTHING),
)


def _faults(cases: tuple[tuple[str, str, int, int], ...], paging: str) -> None:
    lines = ["test: mov %rsp, kept"]
    for number, (before, instruction, _, _) in enumerate(cases):
        lines += [
            before,
            f".macro FAULTING{number}",
            instruction,
            ".endm",
            f"ATTEMPT FAULTING{number}",
            "mov kept, %rsp; mov $0x10, %eax; mov %eax, %ss; mov %eax, %ds",
            f"REPORT vector{number}, vector",
            f"REPORT error{number}, error",
            f"REPORT flags{number}, fault_flags",
        ]
    values = run_small(small_guest("\n".join([*lines, "ret", ".bss", "kept: .skip 8"])), paging)
    for number, (before, instruction, vector, error) in enumerate(cases):
        got = values.values[f"vector{number}"], values.values[f"error{number}"]
        assert got == (vector, error), f"{before}: {instruction}"
        if vector not in (_BP, _NOTHING):
            assert values.values[f"flags{number}"] & _RF, instruction


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_vectors_error_codes_and_rf(paging: str) -> None:
    _faults(_FAULTS, paging)


@own_build_only
@pytest.mark.parametrize("paging", PAGING_MODES)
def test_what_does_not_exist(paging: str) -> None:
    _faults(_MENDED, paging)


_PATCHED_OPCODE = small_guest("""
        .macro  PATCHED
patched: andn   %ecx, %edx, %eax        # C4 E2 68 F2 C1
        .endm
test:   movb    $0x18, patched + 3      # VBROADCASTSS, of AVX
again:  ATTEMPT PATCHED
        REPORT  vector, vector
        movb    $0xF2, patched + 3
        decl    turns
        jnz     again
        ret
        .data
turns:  .long   2
""")


@own_build_only
@pytest.mark.parametrize("paging", PAGING_MODES)
def test_the_opcode_of_an_undefined_instruction_is_patched(paging: str) -> None:
    vectors = re.findall(r"vector=(\w+)", run_small(_PATCHED_OPCODE, paging).console)
    assert [int(vector, 16) for vector in vectors] == [_UD, _NOTHING]


# Debug registers in 32-bit code of a 64-bit kernel: the upper half of RAX does not count.
_NARROW = small_guest("""
test:   movabs  $0x00CF9B000000FFFF, %rax
        mov     %rax, gdt + 0x38
        movabs  $0xFFFFFFFF00000600, %rax
        push    $0x38
        push    $narrow
        lretq
        .code32
narrow: mov     %eax, %dr7
        mov     %eax, %dr6
        mov     %dr7, %ecx
        ljmp    $8, $back
        .code64
back:   mov     %ecx, %ecx
        REPORT  dr7, %rcx
        ret
""")


@own_build_only
@pytest.mark.parametrize("paging", PAGING_MODES)
def test_debug_registers_of_32_bit_code(paging: str) -> None:
    ran = run_small(_NARROW, paging)
    assert ran.outcome.succeeded, ran.outcome
    assert ran.values["dr7"] == 0x600


# Logs each #DB and each interrupt 0x40: where (from `base`), DR6 or 0x40.
_TRACED = """
test:   mov $1, %edi
        mov $on_debug, %esi
        call set_gate
        mov $0x40, %edi
        mov $on_interrupt, %esi
        call set_gate
        mov $0xFFFF0FF0, %eax
        mov %rax, %dr6
        mov $trace, %r11d
        mov %rsp, %r13
        BODY
        mov %r13, %rsp
        pushfq
        andl $~0x300, (%rsp)
        popfq
        xor %eax, %eax
        mov %rax, %dr7
        mov $trace, %ebx
next:   cmp %r11, %rbx
        jae done
        mov (%rbx), %r12
        REPORT at, %r12
        add $8, %rbx
        jmp next
done:   mov $LENGTH, %eax
        REPORT length, %rax
        ret
on_debug: push %rax
        push %rcx
        mov 16(%rsp), %rcx
        sub $base, %rcx
        mov %dr6, %rax
        and $0xE00F, %eax
        shl $16, %rax
        mov %cx, %ax
        mov %rax, (%r11)
        add $8, %r11
        mov $0xFFFF0FF0, %eax
        mov %rax, %dr6
        orl $0x10000, 32(%rsp)          # RF: past a breakpoint
        cmp $trace + 8 * 20, %r11
        jb 1f
        andl $~0x100, 32(%rsp)
1:      pop %rcx
        pop %rax
        iretq
on_interrupt: push %rax
        mov 8(%rsp), %rax
        sub $base, %rax
        movzwl %ax, %eax
        or $0x400000, %eax
        mov %rax, (%r11)
        add $8, %r11
        mov $0xFEE00000, %eax
        movl $0, 0xB0(%rax)
        pop %rax
        iretq
        .bss
        .balign 16
trace:  .skip 1024
area:   .skip 64
        .text"""
_STEP = "pushfq; orl $0x100, (%rsp); popfq"
_PENDING = "mov $0xFEE00000, %ebx; movl $0x1FF, 0xF0(%rbx); movl $0x40040, 0x300(%rbx)"
_BREAK = "mov $here, %eax; mov %rax, %dr0; mov $0x401, %eax; mov %rax, %dr7"
_WATCH = "mov $area, %eax; mov %rax, %dr0; mov $0x10401, %eax; mov %rax, %dr7"
_S, _I = 0x4000, 0x40  # DR6.BS; the interrupt
# name: (body, whose stretch to look at ends at `behind`; where what is seen)
_TRACES: dict[str, tuple[str, list[tuple[int, int]]]] = {
    "repeated": (
        f"mov $area, %esi; mov $area + 8, %edi; mov $3, %ecx; {_STEP};"
        "base: rep movsb; nop; behind:",
        [(0, _S), (0, _S), (2, _S), (3, _S)],
    ),
    "no repetition": (f"xor %ecx, %ecx; {_STEP}; base: rep movsb; behind:", [(2, _S)]),
    "iret sets TF": (
        "push $0x10; push $stack - 256; pushfq; orl $0x100, (%rsp); push $8; push $1f;"
        "base: iretq; 1: nop; behind:",
        [(3, _S)],
    ),
    "iret clears TF": (
        f"push $0x10; push $stack - 256; pushfq; push $8; push $1f; {_STEP};"
        "base: iretq; 1: nop; behind:",
        [(2, _S)],
    ),
    "popf clears TF": (f"pushfq; {_STEP}; base: popfq; nop; behind:", [(1, _S)]),
    "behind mov ss": (
        f"mov $0x10, %eax; {_STEP}; base: nop; mov %eax, %ss; nop; nop; behind:",
        [(1, _S), (4, _S), (5, _S)],
    ),
    "behind sti": (f"{_STEP}; base: sti; nop; cli; behind:", [(1, _S), (2, _S), (3, _S)]),
    "int clears TF": (f"{_STEP}; base: int $0x40; nop; behind:", [(2, _I), (3, _S)]),
    "exits to the host": (
        f"xor %eax, %eax; {_STEP}; base: in $0x80, %al; cpuid; rdtsc; behind:",
        [(2, _S), (4, _S), (6, _S)],
    ),
    "breakpoint": (f"{_BREAK}; base: nop; here: nop; nop; behind:", [(1, 1)]),
    "breakpoint and step": (
        f"{_BREAK}; {_STEP}; base: nop; here: nop; behind:",
        [(1, _S | 1), (2, _S)],
    ),
    "watched, repeated": (
        f"mov $area - 2, %edi; mov $4, %ecx; {_WATCH}; base: rep stosb; nop; behind:",
        [(0, 1)],
    ),
    "sti holds back": (f"{_PENDING}; base: sti; nop; nop; cli; behind:", [(2, _I)]),
    "sti, cli": (f"{_PENDING}; base: sti; cli; nop; behind:", []),
    "sti, sti": (f"{_PENDING}; base: sti; sti; nop; cli; behind:", [(2, _I)]),
    "popf holds nothing back": (
        f"{_PENDING}; pushfq; orl $0x200, (%rsp); base: popfq; nop; cli; behind:",
        [(1, _I)],
    ),
    "sti, hlt": (f"{_PENDING}; base: sti; hlt; cli; behind:", [(2, _I)]),
}


@own_build_only
@pytest.mark.parametrize("paging", PAGING_MODES)
def test_traces(paging: str) -> None:
    for name, (body, wanted) in _TRACES.items():
        source = _TRACED.replace("BODY", body).replace("LENGTH", "behind - base")
        ran = run_small(small_guest(source), paging)
        assert ran.outcome.succeeded, (name, ran.outcome)
        reported = [int(value, 16) for value in re.findall(r"at=(\w+)", ran.console)]
        seen = [(value & 0xFFFF, value >> 16) for value in reported]
        got = [entry for entry in seen if entry[0] <= ran.values["length"]]
        assert got == wanted, name
