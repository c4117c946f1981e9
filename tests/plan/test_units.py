# SPDX-License-Identifier: Apache-2.0
"""Amounts as exports write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvirt.plan.assumptions import Range, parse_range
from memvirt.plan.question import Question, QuestionError, apply_what_if, parse_growth
from memvirt.plan.units import AmountError, parse_amount, parse_number, split_heading

UNITS = {
    "KB": 1 << 10, "KiB": 1 << 10, "MB": 1 << 20, "MiB": 1 << 20, "GB": 1 << 30, "GiB": 1 << 30,
    "TiB": 1 << 40, "MBytes": 1 << 20, "bytes": 1, "B": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("heading", "name", "unit"),
    [
        ("Size MiB", "Size", 1 << 20),
        ("Size MB", "Size", 1 << 20),
        ("Memory usage [KB]", "Memory usage", 1 << 10),
        ("in_use_mib", "in_use", 1 << 20),
        ("memory_gib", "memory", 1 << 30),
        ("node_memory_MemTotal_bytes", "node_memory_MemTotal", 1),
        ("Memory (GB)", "Memory", 1 << 30),
        ("Memory Size MBytes", "Memory Size", 1 << 20),
        ("Memory", "Memory", None),
        ("# Memory", "# Memory", None),
        ("numb", "numb", None),
        ("Climb", "Climb", None),
    ],
)
def test_headings(heading: str, name: str, unit: int | None) -> None:
    assert split_heading(heading) == (name, unit)


@given(st.integers(0, 10**9), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]))
def test_a_cell_with_a_unit(number: int, unit: str, space: str) -> None:
    assert parse_amount(f"{number}{space}{unit}", None) == (number * UNITS[unit], UNITS[unit])


@given(st.integers(0, 10**12), st.sampled_from([",", " ", "'", "\u202f"]))
def test_grouped_digits(number: int, group: str) -> None:
    assert parse_number(f"{number:,}".replace(",", group)) == number


@given(st.integers(1000, 10**12), st.integers(0, 99))
def test_decimal_comma(number: int, cents: int) -> None:
    text = f"{number:,}".replace(",", ".") + f",{cents:02}"
    assert parse_number(text, decimal_comma=True) == pytest.approx(number + cents / 100)


@given(st.floats(0, 1e12, allow_nan=False).map(lambda x: round(x, 3)))
def test_plain_numbers_are_themselves(number: float) -> None:
    if "e" not in repr(number):
        assert parse_number(repr(number)) == number


@pytest.mark.parametrize("text", ["", "x", "1.2.3.x", "4096 parsecs", "1,2,3", "-5 MiB"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(AmountError):
        parse_amount(text, 1 << 20)


def test_an_amount_needs_a_unit() -> None:
    with pytest.raises(AmountError, match="memory_mib"):
        parse_amount("4096", None)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("30%", 0.3, 0.3), ("20%..60%", 0.2, 0.6), ("0.2..0.6", 0.2, 0.6), ("20..60%", 0.2, 0.6)],
)
def test_ranges(text: str, low: float, high: float) -> None:
    assert parse_range(text, "--x") == Range(low, high)


@pytest.mark.parametrize("text", ["", "much", "60%..20%", "120%", "1.2.3"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(AmountError, match="--x"):
        parse_range(text, "--x")


@pytest.mark.parametrize("text", ["", "x", "-100%", "5000%", "1e3x"])
def test_what_is_no_growth(text: str) -> None:
    with pytest.raises(QuestionError, match="--grow"):
        parse_growth(text)


@pytest.mark.parametrize(
    "text", ["", "memory", "memory=", "memory=lots", "colour=red", "sharing=maybe", "idle-tax=100"]
)
def test_what_is_no_what_if(text: str) -> None:
    with pytest.raises(QuestionError, match="--what-if"):
        apply_what_if(Question(), text)


def test_what_ifs_add_up() -> None:
    question = apply_what_if(Question(host_memory=1 << 20), "memory=+4G,balloon=off,idle-tax=0")
    assert question.extra_memory == 1 << 20
    assert not question.balloons
    assert question.options.idle_tax == 0
