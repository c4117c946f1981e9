# SPDX-License-Identifier: Apache-2.0
"""BMI1, BMI2, ADX, MOVBE: results and flags as a model in Python has them, in every SSE state.

The model is written from Intel SDM vol. 2; the upper halves of 32-bit operands hold garbage.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.small_guest import PAGING_MODES, run_small, small_guest

from .own_build import own_build_only

pytestmark = own_build_only

_CF, _ZF, _SF, _OF = 1, 0x40, 0x80, 0x800
_NOTHING = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True)
class _Answer:
    """A result, and the flags the manual defines: (value, mask)."""

    result: int
    flags: int
    defined: int


def _flags(result: int, bits: int, carry: bool) -> int:
    return (
        (_CF if carry else 0)
        | (_ZF if result == 0 else 0)
        | (_SF if result >> (bits - 1) & 1 else 0)
    )


def _logic(result: int, bits: int, carry: bool = False, *, sign: bool = True) -> _Answer:
    defined = _CF | _ZF | _OF | (_SF if sign else 0)
    return _Answer(result, _flags(result, bits, carry), defined)


def _bextr(a: int, b: int, bits: int) -> _Answer:
    start, length = b & 0xFF, b >> 8 & 0xFF
    return _logic(a >> start & ((1 << length) - 1), bits, sign=False)


def _bzhi(a: int, b: int, bits: int) -> _Answer:
    index = b & 0xFF
    return _logic(a & ((1 << index) - 1) if index < bits else a, bits, index >= bits)


def _deposit(source: int, mask: int, bits: int) -> int:
    result, taken = 0, 0
    for bit in range(bits):
        if mask >> bit & 1:
            result |= (source >> taken & 1) << bit
            taken += 1
    return result


def _extract(source: int, mask: int, bits: int) -> int:
    result, given = 0, 0
    for bit in range(bits):
        if mask >> bit & 1:
            result |= (source >> bit & 1) << given
            given += 1
    return result


def _plain(result: int) -> _Answer:
    return _Answer(result, 0, 0)


def _signed(a: int, bits: int) -> int:
    return a - (1 << bits) if a >> (bits - 1) else a


def _trailing(a: int, bits: int) -> _Answer:
    count = bits if a == 0 else (a & -a).bit_length() - 1
    return _Answer(count, _flags(count, bits, a == 0), _CF | _ZF)


def _leading(a: int, bits: int) -> _Answer:
    count = bits - a.bit_length()
    return _Answer(count, _flags(count, bits, a == 0), _CF | _ZF)


# Name -> (instruction, with A and B for the operands and D for the destination, and the model).
_Model = Callable[[int, int, int], _Answer]
_INSTRUCTIONS: dict[str, tuple[str, _Model]] = {
    "andn": ("andn A, B, D", lambda a, b, n: _logic(a & ~b, n)),
    "bextr": ("bextr B, A, D", _bextr),
    "blsi": ("blsi A, D", lambda a, b, n: _logic(a & -a, n, a != 0)),
    "blsmsk": (
        "blsmsk A, D",
        lambda a, b, n: _logic((a ^ (a - 1)) & ((1 << n) - 1), n, a == 0),
    ),
    "blsr": ("blsr A, D", lambda a, b, n: _logic(a & (a - 1) if a else 0, n, a == 0)),
    "bzhi": ("bzhi B, A, D", _bzhi),
    "mulx": ("mulx A, C, D", lambda a, b, n: _plain(a * b >> n)),
    "mulx_low": ("mulx A, D, C", lambda a, b, n: _plain(a * b & ((1 << n) - 1))),
    "pdep": ("pdep A, B, D", lambda a, b, n: _plain(_deposit(b, a, n))),
    "pext": ("pext A, B, D", lambda a, b, n: _plain(_extract(b, a, n))),
    "rorx": ("rorx $7, A, D", lambda a, b, n: _plain((a >> 7 | a << (n - 7)) & ((1 << n) - 1))),
    "sarx": (
        "sarx B, A, D",
        lambda a, b, n: _plain((_signed(a, n) >> (b % n)) & ((1 << n) - 1)),
    ),
    "shlx": ("shlx B, A, D", lambda a, b, n: _plain(a << (b % n) & ((1 << n) - 1))),
    "shrx": ("shrx B, A, D", lambda a, b, n: _plain(a >> (b % n))),
    "tzcnt": ("tzcnt A, D", lambda a, b, n: _trailing(a, n)),
    "lzcnt": ("lzcnt A, D", lambda a, b, n: _leading(a, n)),
}
_REGISTERS = {
    32: {"A": "%ebx", "B": "%edx", "C": "%r13d", "D": "%r14d"},
    64: {"A": "%rbx", "B": "%rdx", "C": "%r13", "D": "%r14"},
}


def _operands(bits: int) -> list[tuple[int, int]]:
    """64-bit words whose lower ``bits`` count: corners, and some at random."""
    source = random.Random(bits)
    high = 1 << (bits - 1)
    corners = [0, 1, high, 2 * high - 1, high | 1]
    controls = [0, 1, bits - 1, bits, 255, bits << 8, (bits << 8) | 1, (bits - 1) << 8 | 3, 0x0804]
    pairs = [(a, b) for a in corners for b in controls]
    pairs += [(source.getrandbits(bits), source.getrandbits(bits)) for _ in range(12)]
    if bits == 64:
        return pairs
    return [(a | source.getrandbits(32) << 32, b | source.getrandbits(32) << 32) for a, b in pairs]


def _source(template: str, bits: int, pairs: list[tuple[int, int]]) -> str:
    instruction = "".join(_REGISTERS[bits].get(word, word) for word in template)
    lines = ["test:"]
    for number, (a, b) in enumerate(pairs):
        lines += [
            f"movabs ${a:#x}, %rbx; movabs ${b:#x}, %rdx; movabs $-1, %r14",
            "cmp %rax, %rax",  # other flags before
            instruction,
            "pushfq; pop %r15",
            f"REPORT r{number}, %r14",
            f"REPORT f{number}, %r15",
        ]
    return "\n".join([*lines, "ret"])


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", _INSTRUCTIONS)
def test_result_and_flags(name: str, bits: int) -> None:
    template, model = _INSTRUCTIONS[name]
    pairs = _operands(bits)
    values = run_small(small_guest(_source(template, bits, pairs)), "nested").values
    low = (1 << bits) - 1
    for number, (a, b) in enumerate(pairs):
        answer = model(a & low, b & low, bits)
        case = f"{name} {bits}: {a:#x}, {b:#x}"
        assert values[f"r{number}"] == answer.result, case
        assert values[f"f{number}"] & answer.defined == answer.flags & answer.defined, case


_IN_EVERY_STATE = {
    "movbe": "movbe tss, %edx",
    "movbe16": "movbe tss, %dx",
    "movbe_store": "movbe %rdx, idt",
    "andn": "andn %edx, %esi, %edi",
    "blsr": "blsr %edx, %edi",
    "shlx": "shlx %edx, %esi, %edi",
    "pdep": "pdep %edx, %esi, %edi",
    "rorx": "rorx $3, %edx, %edi",
    "adcx": "adcx %edx, %esi",
    "adox": "adox %edx, %esi",
    "crc32": "crc32l %edx, %esi",
    "crc32w": "crc32w %dx, %esi",
}
_STATES = {"osfxsr_clear": (0x20, 0), "task_switched": (0x220, 8), "emulated": (0x220, 4)}


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_no_state_of_sse_matters(paging: str) -> None:
    lines = ["test:"]
    for state, (cr4, cr0) in _STATES.items():
        lines.append(f"mov ${cr4:#x}, %eax; mov %rax, %cr4")
        lines.append(f"mov %cr0, %rax; and $~0xC, %eax; or ${cr0}, %eax; mov %rax, %cr0")
        for name, instruction in _IN_EVERY_STATE.items():
            lines += [f"ATTEMPT {instruction}", f"REPORT {state}_{name}, vector"]
    ran = run_small(small_guest("\n".join([*lines, "ret"])), paging)
    assert len(ran.values) == len(_STATES) * len(_IN_EVERY_STATE)
    assert {name: got for name, got in ran.values.items() if got != _NOTHING} == {}


def test_256_bit_forms_are_refused() -> None:
    """VEX.L = 1 is #UD for instructions on general registers (SDM vol. 2A section 2.4)."""
    andn = ".byte 0xC4, 0xE2, 0x6C, 0xF2, 0xC3"
    ran = run_small(small_guest(f"test: ATTEMPT {andn}\nREPORT vector, vector\nret"), "nested")
    assert ran.values["vector"] == 6


def test_the_x87_stack_is_left_alone() -> None:
    source = """
test:   fninit
        fld1
        fld1
        movbe tss, %edx
        andn %edx, %esi, %edi
        fnstsw %ax
        movzwl %ax, %eax
        REPORT status, %rax
        ret"""
    top = run_small(small_guest(source), "nested").values["status"] >> 11 & 7
    assert top == 6
