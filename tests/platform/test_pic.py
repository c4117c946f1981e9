# SPDX-License-Identifier: Apache-2.0
"""8259A behaviour, by the Intel datasheet."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.platform import pic as p
from memvirt.state_record import new_record


def make(icw4: int = 0x01) -> Any:
    """Both chips initialised as Linux does (vectors 0x30 and 0x38), everything unmasked."""
    pic = new_record(p.PIC_DTYPE)[0]
    p.pic_reset(pic)
    for chip, vector, wiring in ((0, 0x30, 0x04), (1, 0x38, 0x02)):
        p.pic_write(pic, chip, 0, 0x11)
        p.pic_write(pic, chip, 1, vector)
        p.pic_write(pic, chip, 1, wiring)
        p.pic_write(pic, chip, 1, icw4)
        p.pic_write(pic, chip, 1, 0x00)
    return pic


def pulse(pic: Any, irq: int) -> None:
    p.pic_set_irq(pic, irq, 0)
    p.pic_set_irq(pic, irq, 1)


def take(pic: Any) -> int | None:
    return int(p.pic_acknowledge(pic)) if p.pic_pending(pic) else None


def test_initialisation_masks_nothing_and_mask_reads_back() -> None:
    pic = make()
    for value in (0x00, 0xFF, 0x5A):
        p.pic_write(pic, 0, 1, value)
        assert p.pic_read(pic, 0, 1) == value


def test_reset_leaves_everything_masked() -> None:
    pic = new_record(p.PIC_DTYPE)[0]
    p.pic_reset(pic)
    for irq in range(16):
        p.pic_set_irq(pic, irq, 1)
    assert not p.pic_pending(pic)


def test_priorities_and_nesting() -> None:
    pic = make()
    pulse(pic, 4)
    pulse(pic, 1)
    assert take(pic) == 0x31
    assert take(pic) is None  # 4 waits while 1 is in service
    pulse(pic, 0)
    assert take(pic) == 0x30  # but 0 interrupts 1
    p.pic_write(pic, 0, 0, 0x20)  # non-specific EOI ends the highest: 0
    p.pic_write(pic, 0, 0, 0x0B)
    assert p.pic_read(pic, 0, 0) == 0x02
    p.pic_write(pic, 0, 0, 0x61)  # specific EOI of 1
    assert take(pic) == 0x34


def test_edge_input_needs_a_new_edge() -> None:
    pic = make()
    p.pic_set_irq(pic, 4, 1)
    assert take(pic) == 0x34
    p.pic_write(pic, 0, 0, 0x64)
    p.pic_set_irq(pic, 4, 1)
    assert take(pic) is None
    pulse(pic, 4)
    assert take(pic) == 0x34


def test_level_input_repeats_until_it_falls() -> None:
    pic = make()
    p.pic_write_edge_level(pic, 0, 0xFF)
    assert p.pic_read_edge_level(pic, 0) == 0xF8
    p.pic_write_edge_level(pic, 1, 0xFF)
    assert p.pic_read_edge_level(pic, 1) == 0xDE
    p.pic_set_irq(pic, 5, 1)
    assert take(pic) == 0x35
    p.pic_write(pic, 0, 0, 0x20)
    assert take(pic) == 0x35
    p.pic_set_irq(pic, 5, 0)
    p.pic_write(pic, 0, 0, 0x20)
    assert take(pic) is None


def test_request_that_vanishes_is_spurious_7_and_not_in_service() -> None:
    pic = make()
    p.pic_set_irq(pic, 4, 1)
    p.pic_set_irq(pic, 4, 0)
    assert p.pic_acknowledge(pic) == 0x37
    p.pic_write(pic, 0, 0, 0x0B)
    assert p.pic_read(pic, 0, 0) == 0


def test_spurious_15_leaves_the_cascade_in_service() -> None:
    """The slave's INT was seen by the master, then the slave's request vanished."""
    pic = make()
    pic.chips[0].edge_level = 0x04  # hold the master's cascade request as a level would be
    pulse(pic, 10)
    pic.chips[1].request = 0
    assert p.pic_acknowledge(pic) == 0x3F
    assert pic.chips[0].in_service == 0x04
    assert pic.chips[1].in_service == 0


def test_slave_interrupt_needs_two_ends() -> None:
    pic = make()
    pulse(pic, 8)
    assert take(pic) == 0x38
    assert (pic.chips[0].in_service, pic.chips[1].in_service) == (0x04, 0x01)
    pulse(pic, 12)
    assert take(pic) is None
    p.pic_write(pic, 1, 0, 0x20)
    p.pic_write(pic, 0, 0, 0x20)
    assert take(pic) == 0x3C


def test_special_fully_nested_master_lets_a_higher_slave_level_through() -> None:
    pic = make(icw4=0x11)
    pulse(pic, 12)
    assert take(pic) == 0x3C
    pulse(pic, 8)
    assert take(pic) == 0x38


def test_auto_eoi_leaves_nothing_in_service() -> None:
    pic = make(icw4=0x03)
    pulse(pic, 3)
    assert take(pic) == 0x33
    assert pic.chips[0].in_service == 0


def test_rotation() -> None:
    pic = make()
    p.pic_write(pic, 0, 0, 0xC3)  # level 3 lowest, so 4 highest
    pulse(pic, 3)
    pulse(pic, 4)
    pulse(pic, 0)
    assert take(pic) == 0x34
    p.pic_write(pic, 0, 0, 0xA0)  # rotate on non-specific EOI: 4 becomes lowest
    assert pic.chips[0].lowest_priority == 4
    assert take(pic) == 0x30
    p.pic_write(pic, 0, 0, 0xE0)  # rotate on specific EOI of 0
    assert take(pic) == 0x33
    assert pic.chips[0].lowest_priority == 0


def test_special_mask_mode_lets_lower_levels_in() -> None:
    pic = make()
    pulse(pic, 1)
    assert take(pic) == 0x31
    pulse(pic, 6)
    assert take(pic) is None
    p.pic_write(pic, 0, 0, 0x68)
    p.pic_write(pic, 0, 1, 0x02)  # mask the level in service
    assert take(pic) == 0x36
    p.pic_write(pic, 0, 0, 0x20)  # ends 6: masked levels are skipped
    assert pic.chips[0].in_service == 0x02


def test_poll_acknowledges() -> None:
    pic = make()
    p.pic_write(pic, 0, 0, 0x0C)
    assert p.pic_read(pic, 0, 0) == 0
    pulse(pic, 5)
    p.pic_write(pic, 0, 0, 0x0C)
    assert p.pic_read(pic, 0, 0) == 0x85
    assert pic.chips[0].in_service == 0x20


def test_request_register_reads_back() -> None:
    pic = make()
    p.pic_write(pic, 0, 1, 0xFF)
    pulse(pic, 6)
    p.pic_write(pic, 0, 0, 0x0A)
    assert p.pic_read(pic, 0, 0) == 0x40


IRQS = st.sampled_from([irq for irq in range(16) if irq != 2])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pulse"), IRQS),
        st.tuples(st.just("mask"), st.integers(0, 0xFFFF)),
        st.tuples(st.just("take"), st.just(0)),
        st.tuples(st.just("end"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_fully_nested_mode_against_a_list_of_priorities(steps: list[tuple[str, int]]) -> None:
    """Oracle: 0, 1, the slave's 8-15, 3-7, in that order; what is in service blocks the rest."""
    order = [0, 1, *range(8, 16), 3, 4, 5, 6, 7]
    pic = make()
    waiting: set[int] = set()
    serving: list[int] = []
    mask = 0
    for action, value in steps:
        if action == "pulse":
            pulse(pic, value)
            waiting.add(value)
        elif action == "mask":
            mask = value & ~0x04
            p.pic_write(pic, 0, 1, mask & 0xFF)
            p.pic_write(pic, 1, 1, mask >> 8)
        elif action == "end" and serving:
            ended = serving.pop()
            if ended >= 8:
                p.pic_write(pic, 1, 0, 0x20)
            p.pic_write(pic, 0, 0, 0x20)
        elif action == "take":
            ready = [irq for irq in order if irq in waiting and not mask >> irq & 1]
            blocked = (
                bool(serving)
                and bool(ready)
                and (
                    order.index(ready[0]) >= order.index(serving[-1])
                    or (ready[0] >= 8 and serving[-1] >= 8)  # one cascade input, already in service
                )
            )
            got = take(pic)
            if ready and not blocked:
                assert got == 0x30 + ready[0]
                waiting.discard(ready[0])
                serving.append(ready[0])
            else:
                assert got is None
