# SPDX-License-Identifier: Apache-2.0
"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from memvirt.address import PAGE_BYTES
from memvirt.errors import MemvirtError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class SizeError(MemvirtError, ValueError):
    """A size that is not one; the message names the field and says what would be right."""


def parse_size(size: int | str, *, what: str) -> int:
    """Bytes of a size such as ``67108864``, "64M", "64MiB" or "1.5G".

    Raises SizeError unless it is a positive multiple of 4 KiB.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", size, re.IGNORECASE)
        if match is None:
            raise SizeError(f'{what}: "{size}" is no size; write for instance 64M or 1.5G')
        value = float(match[1]) * _UNITS[match[2].upper()]
        if value != int(value):
            raise SizeError(f'{what}: "{size}" is not a whole number of bytes')
        size = int(value)
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
