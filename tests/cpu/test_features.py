# SPDX-License-Identifier: Apache-2.0
"""CPUID offers only what the engine executes as the manual says, in every state of CR0 and CR4."""

from __future__ import annotations

import pytest

from memvirt.cpu.unicorn.features import (
    NOT_MODELLED,
    STOCK_ENGINE_WRONG,
    HiddenFeature,
    hidden_features,
)
from memvirt.cpu.unicorn.own_build import IS_OWN_BUILD
from tests.small_guest import PAGING_MODES, run_small, small_guest

_NOTHING = 0xFFFF_FFFF_FFFF_FFFF  # the "vector" of an instruction that raises nothing
# States in which an instruction on general registers must work alike: (name, CR4, bits of CR0).
_STATES = (
    ("osfxsr_clear", 0x20, 0),
    ("osfxsr_set", 0x220, 0),
    ("task_switched", 0x220, 8),
    ("emulated", 0x220, 4),
)
_WRONG = {
    "MOVBE": "movbe tss, %dx",
    "BMI1": "andn %edx, %esi, %edi",
    "BMI2": "shlx %edx, %esi, %edi",
    "ADX": "adcx %edx, %esi",
}
# Offered, and near the wrong ones in the decoder.
_RIGHT = {
    "POPCNT": (1, "c", 23, "popcnt %edx, %esi"),
    "LZCNT": (0x8000_0001, "c", 5, "lzcnt %edx, %esi"),
    "CMPXCHG16B": (1, "c", 13, "cmpxchg16b idt"),
    "LAHF": (0x8000_0001, "c", 0, "lahf"),
}


def _in_every_state(instruction: str) -> str:
    lines = ["test:"]
    for name, cr4, cr0 in _STATES:
        lines += [
            f"mov ${cr4:#x}, %eax; mov %rax, %cr4",
            f"mov %cr0, %rax; and $~0xC, %eax; or ${cr0}, %eax; mov %rax, %cr0",
            f"ATTEMPT {instruction}",
            f"REPORT {name}, vector",
        ]
    return "\n".join([*lines, "ret"])


def _cpuid(leaf: int) -> str:
    return f"""
test:   mov ${leaf:#x}, %eax
        xor %ecx, %ecx
        cpuid
        mov %rax, idt
        mov %rbx, idt + 8
        mov %rcx, idt + 16
        mov %rdx, idt + 24
        REPORT a, idt
        REPORT b, idt+8
        REPORT c, idt+16
        REPORT d, idt+24
        ret"""


def _answers(leaf: int) -> dict[str, int]:
    return run_small(small_guest(_cpuid(leaf)), "nested").values


@pytest.mark.parametrize(
    "leaf", sorted({f.leaf for f in hidden_features(stock_engine=not IS_OWN_BUILD)})
)
def test_no_hidden_feature_is_offered(leaf: int) -> None:
    answers = _answers(leaf)
    hidden = [f for f in hidden_features(stock_engine=not IS_OWN_BUILD) if f.leaf == leaf]
    assert [f.name for f in hidden if answers[f.register] >> f.bit & 1] == []


@pytest.mark.skipif(not IS_OWN_BUILD, reason="the package index's build executes them wrongly")
def test_what_our_build_does_right_is_offered() -> None:
    """tests/engine shows that it does."""
    for feature in STOCK_ENGINE_WRONG:
        assert _answers(feature.leaf)[feature.register] >> feature.bit & 1, feature.name


@pytest.mark.skipif(IS_OWN_BUILD, reason="mended in memvirt's own build of the engine")
@pytest.mark.parametrize(
    "feature", [f for f in STOCK_ENGINE_WRONG if f.name in _WRONG], ids=lambda feature: feature.name
)
def test_the_engine_is_wrong_about_what_is_hidden_for_it(feature: HiddenFeature) -> None:
    """If this fails, the engine has been mended, and the feature can be offered."""
    ran = run_small(small_guest(_in_every_state(_WRONG[feature.name])), "nested")
    # ANDN has no operand-size prefix, which is what the engine takes for a sign of SSE2.
    assert ran.values["osfxsr_clear"] == (_NOTHING if feature.name == "BMI1" else 6), ran
    assert ran.values["osfxsr_set"] == _NOTHING
    assert ran.values["task_switched"] == 7
    assert ran.values["emulated"] == 6


@pytest.mark.parametrize("paging", PAGING_MODES)
@pytest.mark.parametrize("name", _RIGHT)
def test_what_is_offered_works_in_every_state(name: str, paging: str) -> None:
    leaf, register, bit, instruction = _RIGHT[name]
    assert _answers(leaf)[register] >> bit & 1, "not offered: test it with the hidden ones"
    ran = run_small(small_guest(_in_every_state(instruction)), paging)
    assert set(ran.values.values()) == {_NOTHING}, ran


def test_every_hidden_feature_has_a_reason_and_a_place_of_its_own() -> None:
    features = (*NOT_MODELLED, *STOCK_ENGINE_WRONG)
    assert all(feature.reason for feature in features)
    assert len({(f.leaf, f.register, f.bit) for f in features}) == len(features)
    assert hidden_features(stock_engine=False) == NOT_MODELLED
