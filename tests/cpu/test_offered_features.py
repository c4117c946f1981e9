# SPDX-License-Identifier: Apache-2.0
"""Every feature that CPUID offers is used by a guest, in every paging mode, and does its work."""

from __future__ import annotations

import pytest

from memvirt import Machine, VirtualMachine
from memvirt.cpu.unicorn.cpuid import FLAG_REGISTERS, answers_by_register
from memvirt.cpu.unicorn.features import (
    OFFERED,
    STOCK_ENGINE_LIMITS,
    flag_masks,
    offered_features,
)
from memvirt.cpu.unicorn.own_build import IS_OWN_BUILD
from memvirt.cpu.unicorn.processor import UnicornProcessor
from tests.small_guest import PAGING_MODES, run_small, small_guest, small_guest_32

from .instruction_features import INSTRUCTION_FEATURES
from .paging_features import PAGING_FEATURES
from .system_features import SYSTEM_FEATURES

_CASES = INSTRUCTION_FEATURES | PAGING_FEATURES | SYSTEM_FEATURES
_OFFERED = offered_features(stock_engine=not IS_OWN_BUILD)
# Values of a case that the package index's build gets wrong, where the feature cannot be hidden.
_STOCK_WRONG = {
    "MSR": {"unknown", "error"},
    "APIC": {"base", "disabled"},
    "PAT": {"no_type"},
    "FXSR": {"reserved", "reserved_in_ldmxcsr"},
}
# What instructions compute does not depend on paging; their operands are read by it all the same.
_RUNS = [
    (feature.name, paging)
    for feature in _OFFERED
    for paging in (("nested",) if feature.name in INSTRUCTION_FEATURES else PAGING_MODES)
]


def test_the_flags_a_guest_sees_are_those_offered() -> None:
    with VirtualMachine(Machine("32M"), memory="16M", paging="nested") as vm:
        assert isinstance(vm.processor, UnicornProcessor)
        answers = answers_by_register(vm.processor.cpuid)
    seen = {key: answers[key] for key in FLAG_REGISTERS if answers[key]}
    assert seen == flag_masks(_OFFERED)


def test_every_feature_has_a_guest() -> None:
    assert set(_CASES) == {feature.name for feature in OFFERED}


@pytest.mark.parametrize(("name", "paging"), _RUNS)
def test_feature(name: str, paging: str) -> None:
    case = _CASES[name]()
    make = small_guest if case.bits == 64 else small_guest_32
    ran = run_small(make(case.source), paging)
    wrong = {key for key, value in case.wanted.items() if ran.values.get(key) != value}
    assert wrong == (set() if IS_OWN_BUILD else _STOCK_WRONG.get(name, set())), ran.console


def test_what_the_stock_engine_does_wrongly_is_told() -> None:
    assert set(STOCK_ENGINE_LIMITS) == set(_STOCK_WRONG)
