# SPDX-License-Identifier: Apache-2.0
"""The tables of CPUID features, and what is hidden on the package index's build of the engine."""

from __future__ import annotations

import pytest
import unicorn
from unicorn import x86_const

from memvirt.cpu.unicorn.cpuid import FLAG_REGISTERS
from memvirt.cpu.unicorn.features import (
    HIDDEN,
    OFFERED,
    STOCK_ENGINE_WRONG,
    flag_masks,
    offered_features,
)
from memvirt.cpu.unicorn.own_build import IS_OWN_BUILD
from tests.small_guest import run_small, small_guest

from .feature_case import NM, NOTHING, UD, in_states

_WRONG = {
    "MOVBE": "movbe tss, %dx",
    "BMI1": "andn %edx, %esi, %edi",
    "BMI2": "shlx %edx, %esi, %edi",
    "ADX": "adcx %edx, %esi",
}


def test_every_feature_has_a_reason_and_a_place_of_its_own() -> None:
    features = (*OFFERED, *HIDDEN)
    assert all(feature.reason for feature in features)
    assert len({(f.leaf, f.register, f.bit) for f in features}) == len(features)
    assert len({f.name for f in features}) == len(features)
    assert all((f.leaf, f.register) in FLAG_REGISTERS for f in features)


def test_all_that_the_engine_announces_is_in_a_table() -> None:
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    engine.ctl_set_cpu_model(x86_const.UC_CPU_X86_ICELAKE_SERVER)
    engine.mem_map(0x1000, 4096)
    engine.mem_write(0x1000, b"\x0f\xa2")  # cpuid
    tables = flag_masks((*OFFERED, *HIDDEN))
    unknown = {}
    for leaf, name in FLAG_REGISTERS:
        if leaf == 0x8000_0001 and name == "a":
            continue  # the processor's signature, on AMD's
        engine.reg_write(x86_const.UC_X86_REG_RAX, leaf)
        engine.reg_write(x86_const.UC_X86_REG_RCX, 0)
        engine.emu_start(0x1000, 0x1002)
        answer = engine.reg_read(getattr(x86_const, f"UC_X86_REG_E{name.upper()}X"))
        if answer & ~tables.get((leaf, name), 0):
            unknown[leaf, name] = hex(answer & ~tables.get((leaf, name), 0))
    assert unknown == {}


def test_the_stock_engine_is_offered_less() -> None:
    assert offered_features(stock_engine=False) == OFFERED
    left = {feature.name for feature in offered_features(stock_engine=True)}
    assert left == {feature.name for feature in OFFERED} - set(STOCK_ENGINE_WRONG)


@pytest.mark.skipif(IS_OWN_BUILD, reason="mended in memvirt's own build of the engine")
@pytest.mark.parametrize("name", _WRONG)
def test_the_engine_is_wrong_about_what_is_hidden_for_it(name: str) -> None:
    """If this fails, the engine has been mended, and the feature can be offered."""
    lines, _ = in_states(_WRONG[name], {})
    values = run_small(small_guest("\n".join(["test:", *lines, "ret"])), "nested").values
    # ANDN has no operand-size prefix, which is what the engine takes for a sign of SSE2.
    assert values["osfxsr_clear"] == (NOTHING if name == "BMI1" else UD)
    assert values["enabled"] == NOTHING
    assert values["task_switched"] == NM
    assert values["emulated"] == UD
