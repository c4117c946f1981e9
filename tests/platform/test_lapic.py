# SPDX-License-Identifier: Apache-2.0
"""Local APIC behaviour, by the Intel SDM."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.platform import lapic as a
from memvirt.platform.clock import NEVER
from memvirt.state_record import new_record


def make() -> Any:
    lapic = new_record(a.LAPIC_DTYPE)[0]
    a.lapic_reset(lapic)
    return lapic


def test_identity() -> None:
    lapic = make()
    assert a.lapic_read(lapic, a.REG_VERSION, 0) == 0x50014
    assert a.lapic_read(lapic, a.REG_ID, 0) == 0
    assert a.lapic_read(lapic, a.REG_SVR, 0) & a.SVR_ENABLE


def test_priorities_and_end_of_interrupt() -> None:
    lapic = make()
    a.lapic_accept(lapic, 0x41)
    a.lapic_accept(lapic, 0x61)
    assert a.lapic_acknowledge(lapic) == 0x61
    assert a.lapic_read(lapic, a.REG_PPR, 0) == 0x60
    a.lapic_accept(lapic, 0x6F)  # same class: waits
    assert a.lapic_pending(lapic) == a.NO_VECTOR
    a.lapic_accept(lapic, 0xFF)
    assert a.lapic_acknowledge(lapic) == 0xFF
    a.lapic_write(lapic, a.REG_EOI, 0, 0)
    assert a.lapic_pending(lapic) == a.NO_VECTOR
    a.lapic_write(lapic, a.REG_EOI, 0, 0)
    assert [a.lapic_acknowledge(lapic), a.lapic_pending(lapic)] == [0x6F, a.NO_VECTOR]
    assert a.lapic_read(lapic, a.REG_IRR + 0x20, 0) == 1 << 1
    assert a.lapic_read(lapic, a.REG_ISR + 0x30, 0) == 1 << 15


def test_task_priority_blocks_its_class() -> None:
    lapic = make()
    a.lapic_accept(lapic, 0x45)
    a.lapic_write(lapic, a.REG_TPR, 0x40, 0)
    assert a.lapic_pending(lapic) == a.NO_VECTOR
    assert a.lapic_acknowledge(lapic) == 0xFF  # spurious
    a.lapic_write(lapic, a.REG_TPR, 0x3F, 0)
    assert a.lapic_pending(lapic) == 0x45


DIVIDERS = [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)]


@pytest.mark.parametrize(("code", "divider"), DIVIDERS)
def test_one_shot_timer(code: int, divider: int) -> None:
    lapic = make()
    a.lapic_write(lapic, a.REG_LVT_TIMER, 0x50, 0)
    a.lapic_write(lapic, a.REG_TIMER_DIVIDE, code, 0)
    a.lapic_write(lapic, a.REG_TIMER_INITIAL, 1000, 5)
    assert a.lapic_next_deadline(lapic) == 5 + 1000 * divider
    assert a.lapic_read(lapic, a.REG_TIMER_CURRENT, 5 + 400 * divider) == 600
    a.lapic_advance(lapic, 4 + 1000 * divider)
    assert a.lapic_pending(lapic) == a.NO_VECTOR
    a.lapic_advance(lapic, 5 + 1000 * divider)
    assert a.lapic_pending(lapic) == 0x50
    assert a.lapic_next_deadline(lapic) == NEVER
    assert a.lapic_read(lapic, a.REG_TIMER_CURRENT, 10**9) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1000), st.lists(st.integers(0, 5000), max_size=20))
def test_periodic_timer_never_drifts(initial: int, jumps: list[int]) -> None:
    lapic = make()
    a.lapic_write(lapic, a.REG_LVT_TIMER, a.LVT_PERIODIC | 0x50, 0)
    a.lapic_write(lapic, a.REG_TIMER_INITIAL, initial, 0)
    period, now, fired = 2 * initial, 0, 0
    for jump in jumps:
        now += jump
        a.lapic_advance(lapic, now)
        assert a.lapic_next_deadline(lapic) == (now // period + 1) * period
        left = initial - now % period // 2
        assert a.lapic_read(lapic, a.REG_TIMER_CURRENT, now) == left
        due = now // period > fired
        fired = now // period
        assert (a.lapic_pending(lapic) == 0x50) == due
        if due:
            a.lapic_acknowledge(lapic)
            a.lapic_write(lapic, a.REG_EOI, 0, now)


def test_masked_timer_counts_in_silence() -> None:
    lapic = make()
    a.lapic_write(lapic, a.REG_LVT_TIMER, a.LVT_MASKED | 0x50, 0)
    a.lapic_write(lapic, a.REG_TIMER_INITIAL, 100, 0)
    assert a.lapic_next_deadline(lapic) == NEVER
    assert a.lapic_read(lapic, a.REG_TIMER_CURRENT, 100) == 50
    a.lapic_advance(lapic, 200)
    assert a.lapic_pending(lapic) == a.NO_VECTOR


def test_zero_initial_count_stops_the_timer() -> None:
    lapic = make()
    a.lapic_write(lapic, a.REG_LVT_TIMER, 0x50, 0)
    a.lapic_write(lapic, a.REG_TIMER_INITIAL, 100, 0)
    a.lapic_write(lapic, a.REG_TIMER_INITIAL, 0, 50)
    assert a.lapic_next_deadline(lapic) == NEVER


def test_changing_the_divider_keeps_the_count() -> None:
    lapic = make()
    a.lapic_write(lapic, a.REG_TIMER_INITIAL, 100, 0)
    a.lapic_write(lapic, a.REG_TIMER_DIVIDE, 1, 100)
    assert a.lapic_read(lapic, a.REG_TIMER_CURRENT, 100) == 50
    assert a.lapic_read(lapic, a.REG_TIMER_CURRENT, 140) == 40


def test_software_disable_masks_the_local_vectors() -> None:
    lapic = make()
    assert a.lapic_accepts_extint(lapic) == 1
    a.lapic_write(lapic, a.REG_SVR, 0xFF, 0)
    assert a.lapic_accepts_extint(lapic) == 0
    a.lapic_write(lapic, a.REG_LVT_LINT0, a.DELIVERY_EXTINT, 0)
    assert a.lapic_accepts_extint(lapic) == 0  # cannot be unmasked while disabled
    a.lapic_write(lapic, a.REG_SVR, 0x1FF, 0)
    a.lapic_write(lapic, a.REG_LVT_LINT0, a.DELIVERY_EXTINT, 0)
    assert a.lapic_accepts_extint(lapic) == 1


def test_global_disable_delivers_only_external_interrupts() -> None:
    lapic = make()
    a.lapic_accept(lapic, 0x80)
    a.lapic_write(lapic, a.REG_LVT_LINT0, a.LVT_MASKED, 0)
    lapic.base_msr &= ~a.BASE_ENABLE
    assert a.lapic_pending(lapic) == a.NO_VECTOR
    assert a.lapic_accepts_extint(lapic) == 1


@pytest.mark.parametrize(
    ("high", "low", "arrives"),
    [
        (0, 0x40000, True),  # self
        (0, 0x80000, True),  # all including self
        (0, 0xC0000, False),  # all but self
        (0, 0, True),  # physical, APIC 0
        (1 << 24, 0, False),
        (0xFF << 24, 0, True),  # broadcast
        (1 << 24, 0x800, True),  # logical, flat model
        (2 << 24, 0x800, False),
    ],
)
def test_interprocessor_interrupts(high: int, low: int, arrives: bool) -> None:
    lapic = make()
    a.lapic_write(lapic, a.REG_LDR, 1 << 24, 0)
    a.lapic_write(lapic, a.REG_ICR_HIGH, high, 0)
    a.lapic_write(lapic, a.REG_ICR_LOW, low | 0x77, 0)
    assert (a.lapic_pending(lapic) == 0x77) == arrives
    assert a.lapic_read(lapic, a.REG_ICR_LOW, 0) & 1 << 12 == 0  # delivered at once


def test_errors_are_read_after_a_write() -> None:
    lapic = make()
    a.lapic_write(lapic, a.REG_LVT_ERROR, 0xFE, 0)
    a.lapic_write(lapic, a.REG_ICR_LOW, 0x40000 | 5, 0)
    assert a.lapic_read(lapic, a.REG_ESR, 0) == 0
    a.lapic_write(lapic, a.REG_ESR, 0, 0)
    assert a.lapic_read(lapic, a.REG_ESR, 0) == a.ESR_SEND_ILLEGAL_VECTOR
    assert a.lapic_pending(lapic) == 0xFE
    a.lapic_write(lapic, a.REG_ESR, 0, 0)
    assert a.lapic_read(lapic, a.REG_ESR, 0) == 0
