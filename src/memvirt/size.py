# SPDX-License-Identifier: Apache-2.0
"""Sizes of memory as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

from memvirt.address import PAGE_BYTES
from memvirt.errors import MemvirtError
from memvirt.notebook import one_line

_MOST_BYTES = 1 << 62  # beyond every address space; what one host has is asked where it is used
_SHOWN = 40
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class SizeError(MemvirtError, ValueError):
    """A size that is not one; the message names the field and says what would be right."""


def parse_size(size: int | str, *, what: str) -> int:
    """Bytes of a size such as ``67108864``, "64M", "64MiB" or "1.5G".

    Raises SizeError unless it is a positive multiple of 4 KiB, and less than 4 EiB.
    """
    shown = one_line(size, _SHOWN) if isinstance(size, str) else "such a number of bytes"
    if isinstance(size, str):
        match = re.fullmatch(
            r"\s*([0-9]{1,400}(?:\.[0-9]{1,400})?)\s*([KMGT]?)(?:i?B)?\s*", size, re.IGNORECASE
        )
        if match is None:
            raise SizeError(f'{what}: "{shown}" is no size; write for instance 64M or 1.5G')
        value = Fraction(match[1]) * _UNITS[match[2].upper()]
        if value != int(value):
            raise SizeError(f'{what}: "{shown}" is not a whole number of bytes')
        size = int(value)
    if size >= _MOST_BYTES:
        raise SizeError(f"{what}: {shown} is more than any machine has")
    if size <= 0 or size % PAGE_BYTES:
        likely = f"; did you mean {size}M?" if 0 < size < PAGE_BYTES else ""
        raise SizeError(f"{what}: {size} bytes is not a positive multiple of 4 KiB{likely}")
    return size


def format_size(size: float) -> str:
    """A size in the unit that suits it, for people: "61.2 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
