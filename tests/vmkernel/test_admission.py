# SPDX-License-Identifier: Apache-2.0
"""Admission: the numbers, and that nothing is lost by a refusal."""

from __future__ import annotations

import pytest

from memvirt.vmkernel.admission import Admission, AdmissionError, VmSettings

MIB = 256


def settings(name: str, memory: int, reservation: int) -> VmSettings:
    return VmSettings(name, memory * MIB, 10, reservation * MIB)


def test_reservation_and_overhead_must_fit() -> None:
    admission = Admission(100 * MIB, swap=None)
    admission.admit(settings("a", 80, 60), 2 * MIB)
    assert admission.unreserved == 38 * MIB
    with pytest.raises(AdmissionError) as refused:
        admission.admit(settings("b", 64, 40), 1 * MIB)
    assert str(refused.value) == (
        "VM b cannot be powered on: it needs 41.0 MiB of machine memory (reservation 40.0 MiB and "
        "overhead 1.0 MiB), but 38.0 MiB of 100.0 MiB are unreserved"
    )
    assert admission.unreserved == 38 * MIB
    admission.admit(settings("c", 64, 37), 1 * MIB)
    assert admission.unreserved == 0


def test_swap_must_cover_what_is_not_reserved() -> None:
    admission = Admission(100 * MIB, swap=50 * MIB)
    admission.admit(settings("a", 40, 10), 0)
    with pytest.raises(AdmissionError, match=r"needs 30.0 MiB of swap .* 20.0 MiB of 50.0 MiB"):
        admission.admit(settings("b", 40, 10), 0)
    admission.admit(settings("c", 30, 10), 0)
    admission.leave(settings("a", 40, 10), 0)
    admission.admit(settings("b", 40, 10), 0)


def test_the_limit_bounds_what_a_vm_may_have() -> None:
    assert VmSettings("a", 100, 1, limit=30).maximum == 30
    assert VmSettings("a", 100, 1, limit=300).maximum == 100
    assert VmSettings("a", 100, 1).maximum == 100
