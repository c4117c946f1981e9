# SPDX-License-Identifier: Apache-2.0
"""For each CPUID feature that is a set of instructions: a guest that uses it, what it must report.

What is right is the Intel SDM's (vol. 2, the instructions' pages, with their exceptions), by
hand or by Python; for AES the rounds of Intel's white paper on AES-NI, and FIPS 197's mixing.
"""

from __future__ import annotations

from collections.abc import Callable

from .feature_case import (
    GP,
    MF,
    MMX_RAISES,
    NM,
    NOTHING,
    SCRATCH,
    SSE_RAISES,
    X87_RAISES,
    FeatureCase,
    case,
    in_states,
    load,
)


def _vectors(*operations: tuple[str, int, int, int]) -> FeatureCase:
    """(instruction on XMM0 and XMM1, XMM0 before, XMM1 before, XMM0 after)."""
    lines, wanted = in_states(operations[0][0], SSE_RAISES)
    for number, (instruction, first, second, result) in enumerate(operations):
        lines += [*load("%xmm0", first), *load("%xmm1", second), instruction]
        lines += ["movdqu %xmm0, scratch"]
        lines += [f"REPORT low{number}, scratch", f"REPORT high{number}, scratch+8"]
        wanted |= {f"low{number}": result & NOTHING, f"high{number}": result >> 64}
    return case([*lines, "ret", *SCRATCH], wanted)


def _general(*operations: tuple[str, int, int, int]) -> FeatureCase:
    """(instruction on RDX and RSI, RDX before, RSI before, RSI after), in every state alike."""
    lines, wanted = in_states(operations[0][0], {})
    for number, (instruction, first, second, result) in enumerate(operations):
        lines += [f"movabs ${first:#x}, %rdx; movabs ${second:#x}, %rsi; clc", instruction]
        lines += ["mov %rsi, %r15", f"REPORT result{number}, %r15"]
        wanted |= {f"result{number}": result}
    return case([*lines, "ret", *SCRATCH], wanted)


def _x87() -> FeatureCase:
    lines, wanted = in_states("fld1", X87_RAISES)
    lines += [
        "fninit; fld1; fld1; faddp; fistpll scratch",
        "REPORT sum, scratch",
        "mov %cr0, %rax; or $0x2A, %eax; mov %rax, %cr0",  # NE, TS, MP
        "ATTEMPT fwait",
        "REPORT wait, vector",
        "clts; fninit; movw $0x37B, scratch; fldcw scratch; fld1; fldz; fdivrp",  # ZM clear
        "ATTEMPT fwait",
        "REPORT pending, vector",
        "fnstsw %ax; and $0x84, %eax",  # ES, ZE
        "REPORT status, %rax",
        "ret",
        *SCRATCH,
    ]
    return case(lines, wanted | {"sum": 2, "wait": NM, "pending": MF, "status": 0x84})


def _compare_exchange(width: int) -> FeatureCase:
    half = 8 * width
    instruction = f"cmpxchg{2 * width}b scratch"
    lines, wanted = in_states(instruction, {})
    a, d = ("%eax", "%edx") if width == 4 else ("%rax", "%rdx")
    b, c = ("%ebx", "%ecx") if width == 4 else ("%rbx", "%rcx")
    first, second = (1 << half) - 2, (1 << half) - 3
    lines += [
        f"mov ${first - (1 << half)}, %rax; mov {a}, scratch",
        f"mov ${second - (1 << half)}, %rax; mov {a}, scratch + {width}",
        f"xor %eax, %eax; xor %edx, %edx; {instruction}; setz %r14b; and $1, %r14d",
        f"mov {a}, {a}; mov %rax, %r12; mov {d}, {d}; mov %rdx, %r13",
        "REPORT unequal, %r14",
        "REPORT read_low, %r12",
        "REPORT read_high, %r13",
        "mov %r12, %rax; mov %r13, %rdx; mov $0x5, %ebx; mov $0x6, %ecx",
        f"lock {instruction}; setz %r14b; and $1, %r14d",
        "REPORT equal, %r14",
        f"mov scratch, {b}; mov %rbx, %r12; mov scratch + {width}, {c}; mov %rcx, %r13",
        "REPORT low, %r12",
        "REPORT high, %r13",
    ]
    wanted |= {
        "unequal": 0,
        "read_low": first,
        "read_high": second,
        "equal": 1,
        "low": 5,
        "high": 6,
    }
    if width == 8:
        lines += ["ATTEMPT cmpxchg16b scratch + 8", "REPORT misaligned, vector"]
        wanted |= {"misaligned": GP}
    return case([*lines, "ret", *SCRATCH], wanted)


def _conditional_moves() -> FeatureCase:
    return case(
        [
            "mov $-1, %r12; mov $5, %ecx; cmp %ecx, %ecx; cmovne %ecx, %r12d",
            "REPORT not_moved, %r12",
            "mov $5, %ecx; cmp %ecx, %ecx; cmove %ecx, %r12d",
            "REPORT moved, %r12",
            "fninit; fldz; fld1; cmp %ecx, %ecx; fcmove %st(1), %st; fistpll scratch",
            "REPORT floating, scratch",
            "ret",
            *SCRATCH,
        ],
        {"not_moved": 0xFFFF_FFFF, "moved": 5, "floating": 0},
    )


def _mmx() -> FeatureCase:
    lines, wanted = in_states("paddb %mm0, %mm1", MMX_RAISES)
    lines += [
        "fninit; movabs $0x01FF02FE037F8000, %rax; movq %rax, %mm0; movq %mm0, %mm1",
        "paddb %mm1, %mm0; movq %mm0, %r15",
        "REPORT sum, %r15",
        "fnstenv scratch; movzwl scratch + 8, %eax",
        "REPORT tags, %rax",  # valid all: MM0 and MM1 no numbers, the rest 0. EMMS: empty
        "emms; fnstenv scratch; movzwl scratch + 8, %eax",
        "REPORT emptied, %rax",
        "fstpt scratch",
        "ret",
        *SCRATCH,
    ]
    return case(lines, wanted | {"sum": 0x02FE_04FC_06FE_0000, "tags": 0x555A, "emptied": 0xFFFF})


def _save_and_restore() -> FeatureCase:
    lines, wanted = in_states("fxsave64 scratch", X87_RAISES)
    lines += [
        "fninit; fld1; mov $0x55, %eax; movq %rax, %xmm9; fxsave64 scratch",
        "fninit; pxor %xmm9, %xmm9; fxrstor64 scratch; fistpll scratch + 512; movq %xmm9, %r15",
        "REPORT x87, scratch+512",
        "REPORT xmm9, %r15",
        "ATTEMPT fxsave64 scratch + 8",
        "REPORT misaligned, vector",
        "movl $0x80000000, scratch + 24",
        "ATTEMPT fxrstor64 scratch",
        "REPORT reserved, vector",
        "movl $0x11F80, scratch",
        "ATTEMPT ldmxcsr scratch",
        "REPORT reserved_in_ldmxcsr, vector",
        "ret",
        *SCRATCH,
    ]
    return case(
        lines,
        wanted
        | {"x87": 1, "xmm9": 0x55, "misaligned": GP, "reserved": GP, "reserved_in_ldmxcsr": GP},
    )


def _bytes(*values: int) -> int:
    return int.from_bytes(bytes(values), "little")


def _crc32c(word: int) -> int:
    """CRC32 of SSE4.2 with a zero before: the polynomial 0x11EDC6F41, bits reflected."""
    crc = word
    for _ in range(32):
        crc = crc >> 1 ^ (0x82F6_3B78 if crc & 1 else 0)
    return crc


_A16 = _bytes(*range(0x10, 0x20))
_REVERSE = _bytes(*range(15, -1, -1))
_ONES = 0x3F80_0000_3F80_0000_3F80_0000_3F80_0000  # 1.0 four times
_TWO, _THREE = 0x4000_0000, 0x4040_0000
_AES = 0x7B5B_5465_7374_5665_6374_6F72_5D53_475D, 0x4869_2853_6861_7929_5B47_7565_726F_6E5D

INSTRUCTION_FEATURES: dict[str, Callable[[], FeatureCase]] = {
    "SSE3": lambda: _vectors(
        ("haddps %xmm1, %xmm0", _ONES, _ONES, _TWO * (1 | 1 << 32 | 1 << 64 | 1 << 96)),
        (
            "movsldup %xmm1, %xmm0",
            0,
            4 << 96 | 3 << 64 | 2 << 32 | 1,
            3 << 96 | 3 << 64 | 1 << 32 | 1,
        ),
    ),
    "PCLMULQDQ": lambda: _vectors(
        ("pclmulqdq $0x10, %xmm1, %xmm0", 7, 5 << 64, 0x1B),
        ("pclmulqdq $0x00, %xmm1, %xmm0", 1 << 63, 6, 3 << 64),
    ),
    "SSSE3": lambda: _vectors(
        ("pshufb %xmm1, %xmm0", _A16, _REVERSE, _bytes(*range(0x1F, 0x0F, -1))),
        ("pabsd %xmm1, %xmm0", 0, 0xFFFF_FFFF << 32 | 5, 1 << 32 | 5),
    ),
    "CMPXCHG16B": lambda: _compare_exchange(8),
    "SSE4.1": lambda: _vectors(
        (
            "pmulld %xmm1, %xmm0",
            0x1_0001 << 32 | 3,
            0x1_0001 << 32 | 0xFFFF_FFFF,
            0x2_0001 << 32 | 0xFFFF_FFFD,
        ),
        ("pmovzxbq %xmm1, %xmm0", 0, 0x80FF, 0x80 << 64 | 0xFF),
        ("roundss $1, %xmm1, %xmm0", 0, 0xBFC0_0000, 0xC000_0000),
    ),
    "SSE4.2": lambda: _vectors(
        ("pcmpgtq %xmm1, %xmm0", 1 << 64 | 5, NOTHING << 64 | 5, NOTHING << 64),
        ("mov $7, %edx; xor %eax, %eax; crc32l %edx, %eax; movd %eax, %xmm0", 0, 0, _crc32c(7)),
    ),
    "MOVBE": lambda: _general(
        ("mov %rdx, scratch; movbe scratch, %rsi", 0x0102_0304_0506_0708, 0, 0x0807_0605_0403_0201),
        ("mov %rdx, scratch; movbe scratch, %si", 0x0102, 0, 0x0201),
    ),
    "POPCNT": lambda: _general(
        ("popcnt %rdx, %rsi", 0xF0F0_0000_0000_0001, 0, 9),
        ("popcnt %dx, %si", 0xFFFF_0003, NOTHING, NOTHING ^ 0xFFFF | 2),
    ),
    "AES": lambda: _vectors(
        ("aesenc %xmm1, %xmm0", *_AES, 0xA831_1C2F_9FDB_A3C5_8B10_4B58_DED7_E595),
        ("aesenclast %xmm1, %xmm0", *_AES, 0xC7FB_881E_938C_5964_177E_C425_53FD_C611),
        ("aesdec %xmm1, %xmm0", *_AES, 0x138A_C342_FAEA_2787_B58E_B95E_B730_392A),
        ("aesdeclast %xmm1, %xmm0", *_AES, 0xC5A3_91EF_6B31_7F95_D410_637B_72A5_93D0),
        ("aesimc %xmm1, %xmm0", *_AES, 0x597F_8DF1_09EF_AA15_F39B_C5A1_19D8_59B6),
    ),
    "FPU": _x87,
    "CX8": lambda: _compare_exchange(4),
    "CMOV": _conditional_moves,
    "MMX": _mmx,
    "FXSR": _save_and_restore,
    "SSE": lambda: _vectors(
        ("mulps %xmm1, %xmm0", _ONES, _THREE << 96 | _TWO, _THREE << 96 | _TWO),
        ("cvttss2si %xmm1, %eax; movd %eax, %xmm0; sfence", 0, _THREE, 3),
        ("prefetcht0 -4096; movaps %xmm1, %xmm0", 0, _A16, _A16),
    ),
    "SSE2": lambda: _vectors(
        ("paddq %xmm1, %xmm0", NOTHING << 64 | NOTHING, 1 << 64 | 2, 1),
        (
            "xor %eax, %eax; cvtsi2sd %eax, %xmm1; movapd %xmm1, %xmm0; lfence; mfence",
            0,
            1 << 64,
            1 << 64,
        ),
    ),
    "BMI1": lambda: _general(
        ("andn %rsi, %rdx, %rsi", 0xFF, 0xABCD, 0xAB00),
        ("tzcnt %rdx, %rsi", 0, 0, 64),
        ("blsr %rdx, %rsi", 0x60, 0, 0x40),
    ),
    "BMI2": lambda: _general(
        ("shlx %rdx, %rsi, %rsi", 65, 3, 6),
        ("pdep %rdx, %rsi, %rsi", 0xF0F0, 0xA5, 0xA050),
        ("pext %rdx, %rsi, %rsi", 0xF0F0, 0xA050, 0xA5),
    ),
    "ADX": lambda: _general(
        ("stc; adcx %rdx, %rsi", 1, NOTHING, 1),
        ("xor %eax, %eax; adox %rdx, %rsi", 2, 3, 5),
    ),
    "LAHF": lambda: _general(("mov %edx, %eax; sahf; lahf; movzx %ah, %esi", 0xD700, 0, 0xD7)),
    "LZCNT": lambda: _general(
        ("lzcnt %rdx, %rsi", 1, 0, 63), ("lzcnt %edx, %esi", NOTHING << 32 & NOTHING, 9, 32)
    ),
}
