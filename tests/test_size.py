# SPDX-License-Identifier: Apache-2.0
"""Sizes as people write them."""

from __future__ import annotations

import pytest

from memvirt.size import SizeError, parse_size


def test_a_size_without_its_unit_is_guessed_in_the_message() -> None:
    with pytest.raises(SizeError, match=r"--memory: 256 bytes is not .* did you mean 256M\?"):
        parse_size("256", what="--memory")
    with pytest.raises(SizeError, match=r"4 KiB$"):
        parse_size("5000", what="--memory")


@pytest.mark.parametrize(
    "text", ["9" * 399, "9" * 400 + "T", "9" * 5000, "8388608T", "4611686018427387904"]
)
def test_a_size_beyond_every_machine_is_refused(text: str) -> None:
    with pytest.raises(SizeError) as raised:
        parse_size(text, what="--memory")
    assert len(str(raised.value)) < 150
    if len(text) < 400:
        with pytest.raises(SizeError, match="more than any machine has"):
            parse_size(int(text.rstrip("T")) << (40 if "T" in text else 0), what="--memory")


@pytest.mark.parametrize("text", ["inf", "nan", "1e9", "\ud800", "\x1b[2J", "\u0663M", "-5M", ""])
def test_what_is_no_size_is_shown_so_that_no_terminal_obeys(text: str) -> None:
    with pytest.raises(SizeError, match="is no size") as raised:
        parse_size(text, what="--memory")
    assert str(raised.value).isprintable()


def test_a_size_is_exact() -> None:
    assert parse_size("4095.99609375T", what="x") == (4096 << 40) - (1 << 32)
    assert parse_size("2251799813685252K", what="x") == 2251799813685252 << 10
    with pytest.raises(SizeError, match="whole number of bytes"):
        parse_size("0.3K", what="x")
