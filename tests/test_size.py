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
