# SPDX-License-Identifier: Apache-2.0
"""An engine that is not the verified one, or keeps a register elsewhere, is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import unicorn
from unicorn import unicorn_const, x86_const

from memvirt.cpu.unicorn import registers as reg
from memvirt.cpu.unicorn.own_build import IS_OWN_BUILD
from memvirt.cpu.unicorn.version import (
    VERIFIED_VERSION,
    EngineLayoutError,
    check_engine_version,
    engine_version,
)


@pytest.fixture
def engine() -> Any:
    fresh = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    fresh.ctl_set_cpu_model(x86_const.UC_CPU_X86_ICELAKE_SERVER)
    fresh.ctl_exits_enabled(False)
    fresh.ctl_set_tlb_mode(unicorn_const.UC_TLB_VIRTUAL)
    return fresh


def test_the_installed_engine_is_the_verified_one(engine: Any) -> None:
    assert engine_version() == VERIFIED_VERSION
    check_engine_version()
    reg.locate_registers(engine)


@pytest.mark.parametrize("patch", [0, 1, 2, 3, 5])
def test_another_version_is_refused(patch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    word = 2 << 24 | 1 << 16 | patch << 8 | 0xFF
    monkeypatch.setattr(unicorn, "uc_version", lambda: (2, 1, word))
    with pytest.raises(EngineLayoutError) as raised:
        check_engine_version()
    assert str(raised.value) == (
        f"unicorn 2.1.{patch} is installed, and memvirt has been verified with 2.1.4 only: "
        "pip install unicorn==2.1.4"
    )


_FIXED = (
    "RIP", "RAW_FLAGS", "HFLAGS", "CR0", "CR2", "CR3", "CR4", "EFER", "ES", "SS", "DS", "FS", "GS",
    "LDTR", "TR", "GDTR", "IDTR", "SEGMENT_BASE", "SEGMENT_LIMIT", "SEGMENT_FLAGS",
    "TLB_RECORD_BYTES", "_TLB_ENTRIES_USED", "EXCEPTION_IN_FLIGHT",
)  # fmt: skip


@pytest.mark.parametrize("shift", [-8, 8])
@pytest.mark.parametrize("name", _FIXED)
def test_a_register_elsewhere_is_refused(
    name: str, shift: int, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each offset that is fixed, eight bytes off: the check must see it."""
    if IS_OWN_BUILD and name == "_TLB_ENTRIES_USED":
        pytest.skip("used only where the records are searched for: this build states their place")
    monkeypatch.setattr(reg, name, getattr(reg, name) + shift)
    with pytest.raises(EngineLayoutError) as raised:
        reg.locate_registers(engine)
    assert "\n" not in str(raised.value)
