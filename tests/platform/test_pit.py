# SPDX-License-Identifier: Apache-2.0
"""8254 behaviour, by the Intel 82C54 datasheet, and against a timer that counts tick by tick."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.platform import pit as p
from memvirt.platform.clock import NEVER
from memvirt.state_record import new_record


def make() -> Any:
    pit = new_record(p.PIT_DTYPE)[0]
    p.pit_reset(pit)
    return pit


def program(pit: Any, channel: int, mode: int, count: int, tick: int = 0) -> None:
    now = p.pit_nanoseconds(tick)
    p.pit_advance(pit, now)
    p.pit_write(pit, 3, channel << 6 | 0x30 | mode << 1, now)
    p.pit_write(pit, channel, count & 0xFF, now)
    p.pit_write(pit, channel, count >> 8, now)


def read_16(pit: Any, channel: int, tick: int) -> int:
    now = p.pit_nanoseconds(tick)
    low = int(p.pit_read(pit, channel, now))
    return low | int(p.pit_read(pit, channel, now)) << 8


class NaiveCounter:
    """Output and count of one freely gated channel, one tick at a time (no shared code)."""

    def __init__(self, mode: int, count: int) -> None:
        self.mode, self.count, self.left = mode, count, count
        self.output = mode != 0
        self.struck = False

    def tick(self) -> None:
        self.left -= 1
        if self.mode == 0:
            self.output = self.output or self.left <= 0
        elif self.mode == 4:
            self.output = self.struck or self.left != 0
            self.struck = self.struck or self.left == 0
        elif self.mode == 2:
            if self.left == 0:
                self.left = self.count
            self.output = self.left != 1
        elif self.mode == 3:
            if self.left == 0:
                self.left = self.count
            self.output = self.count - self.left < (self.count + 1) // 2


@given(st.integers(0, 1 << 53))
def test_nanoseconds_is_the_first_moment_of_a_tick(tick: int) -> None:
    moment = p.pit_nanoseconds(tick)
    assert p.pit_ticks(moment) == tick
    assert moment == 0 or p.pit_ticks(moment - 1) == tick - 1


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0, 2, 3, 4]), st.integers(2, 40), st.integers(0, 1000))
def test_output_and_edges_against_the_naive_counter(mode: int, count: int, start: int) -> None:
    pit = make()
    program(pit, 0, mode, count, start)
    naive = NaiveCounter(mode, count)
    for tick in range(start + 1, start + 100):
        before = naive.output
        naive.tick()
        deadline = p.pit_next_deadline(pit)
        edges = p.pit_advance(pit, p.pit_nanoseconds(tick))
        assert p.pit_output(pit.channels[0], tick) == int(naive.output)
        assert edges == int(naive.output and not before)
        if edges:
            assert deadline == p.pit_nanoseconds(tick)
        if mode in (0, 2, 4):
            assert read_16(pit, 0, tick) == naive.left & 0xFFFF


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 500), st.lists(st.integers(0, 3000), max_size=20))
def test_edges_are_counted_once_however_time_is_cut(count: int, jumps: list[int]) -> None:
    pit = make()
    program(pit, 0, 2, count)
    tick = total = 0
    for jump in jumps:
        tick += jump
        total += p.pit_advance(pit, p.pit_nanoseconds(tick))
        assert p.pit_next_deadline(pit) == p.pit_nanoseconds((tick // count + 1) * count)
    assert total == tick // count


def test_one_shot_mode_fires_once() -> None:
    pit = make()
    program(pit, 0, 0, 100, 7)
    assert p.pit_next_deadline(pit) == p.pit_nanoseconds(107)
    assert p.pit_advance(pit, p.pit_nanoseconds(10**6)) == 1
    assert p.pit_next_deadline(pit) == NEVER


def test_new_count_in_a_periodic_mode_waits_for_the_period() -> None:
    pit = make()
    program(pit, 0, 2, 100)
    now = p.pit_nanoseconds(30)
    p.pit_advance(pit, now)
    p.pit_write(pit, 0, 50, now)
    p.pit_write(pit, 0, 0, now)
    edges = [t for t in range(31, 310) if p.pit_advance(pit, p.pit_nanoseconds(t))]
    assert edges == [100, 150, 200, 250, 300]


def test_new_count_and_a_long_sleep() -> None:
    pit = make()
    program(pit, 0, 2, 100)
    p.pit_write(pit, 0, 50, 0)
    p.pit_write(pit, 0, 0, 0)
    assert p.pit_advance(pit, p.pit_nanoseconds(300)) == 5


def test_latch_holds_the_count_until_read() -> None:
    pit = make()
    program(pit, 2, 0, 1000)
    p.pit_write_61(pit, 1, 0)
    p.pit_write(pit, 3, 0x80, p.pit_nanoseconds(10))
    p.pit_write(pit, 3, 0x80, p.pit_nanoseconds(500))  # a second latch is ignored
    assert read_16(pit, 2, 600) == 990
    assert read_16(pit, 2, 600) == 400


def test_read_back_latches_status_and_count() -> None:
    pit = make()
    program(pit, 0, 2, 1000)
    p.pit_write(pit, 3, 0xC2, p.pit_nanoseconds(100))
    assert p.pit_read(pit, 0, p.pit_nanoseconds(200)) == 0x80 | 0x30 | 2 << 1
    assert read_16(pit, 0, 300) == 900
    p.pit_write(pit, 3, 0xE2, p.pit_nanoseconds(999))  # status only, while OUT is low
    assert p.pit_read(pit, 0, p.pit_nanoseconds(999)) == 0x30 | 2 << 1
    p.pit_write(pit, 3, 0x30, p.pit_nanoseconds(1000))
    p.pit_write(pit, 3, 0xE2, p.pit_nanoseconds(1000))
    assert p.pit_read(pit, 0, p.pit_nanoseconds(1000)) == 0x40 | 0x30  # null count


@pytest.mark.parametrize(("access", "wanted"), [(1, 0x34), (2, 0x3400)])
def test_single_byte_access(access: int, wanted: int) -> None:
    pit = make()
    p.pit_write(pit, 3, access << 4, 0)
    p.pit_write(pit, 0, 0x34, 0)
    assert pit.channels[0].count == wanted
    assert p.pit_read(pit, 0, 0) == 0x34


def test_bcd_counts_decimally() -> None:
    pit = make()
    p.pit_write(pit, 3, 0x31, 0)
    p.pit_write(pit, 0, 0x34, 0)
    p.pit_write(pit, 0, 0x12, 0)
    assert read_16(pit, 0, 235) == 0x0999


def test_count_zero_is_65536() -> None:
    pit = make()
    program(pit, 0, 2, 0)
    assert p.pit_next_deadline(pit) == p.pit_nanoseconds(65536)


def test_channel_2_gate_and_output_as_linux_calibrates_the_tsc() -> None:
    pit = make()
    p.pit_write_61(pit, 0x01, 0)
    program(pit, 2, 0, 11932)
    assert p.pit_read_61(pit, p.pit_nanoseconds(11931)) & 0x21 == 0x01
    assert p.pit_read_61(pit, p.pit_nanoseconds(11932)) & 0x21 == 0x21


def test_gate_low_suspends_mode_0() -> None:
    pit = make()
    p.pit_write_61(pit, 1, 0)
    program(pit, 2, 0, 100)
    p.pit_write_61(pit, 0, p.pit_nanoseconds(40))
    assert read_16(pit, 2, 5000) == 60
    p.pit_write_61(pit, 1, p.pit_nanoseconds(5000))
    assert read_16(pit, 2, 5010) == 50


def test_gate_rise_triggers_mode_1() -> None:
    pit = make()
    program(pit, 2, 1, 100)
    assert p.pit_output(pit.channels[2], 50) == 1
    p.pit_write_61(pit, 1, p.pit_nanoseconds(60))
    assert [p.pit_output(pit.channels[2], t) for t in (60, 159, 160)] == [0, 0, 1]


def test_refresh_bit_toggles() -> None:
    pit = make()
    seen = {p.pit_read_61(pit, t * p.REFRESH_PERIOD_NS) >> 4 & 1 for t in range(2)}
    assert seen == {0, 1}
