# SPDX-License-Identifier: Apache-2.0
"""Amounts of memory as exports write them: numbers, units, and which of them a column means.

VMware's tools write MB and mean MiB; so do RVTools, esxtop and the Bitbrains traces (KB for KiB).
Here K, M, G and T are powers of 1024, with or without the i, as everywhere in memvirt.
"""

from __future__ import annotations

import math
import re

from memvirt.address import PAGE_BYTES
from memvirt.errors import MemvirtError

_MOST_BYTES = 1 << 72  # its pages, and sums of them, are exact enough in every type used
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
# A unit at the end of a heading: "Size MiB", "Memory usage [KB]", "in_use_mib", "total_bytes".
_HEADING = re.compile(
    r"^(?P<name>.*?)(?:^|[\s_\[(#]+)(?P<unit>bytes?|[KMGT]i?B(?:ytes)?|B)[\])]*\s*$",
    re.IGNORECASE,
)
_CELL = re.compile(
    r"^\s*(?P<number>[-+]?[\d.,'\s\u00a0\u202f]*\d(?:[eE][-+]?\d+)?)\s*(?P<unit>bytes?|[KMGT](?:i?B(?:ytes)?)?|B)?\s*$",
    re.IGNORECASE,
)
_GROUPS = re.compile(r"[\s'\u00a0\u202f]")


class AmountError(MemvirtError, ValueError):
    """Text that is no amount; the message says what would be right."""


def unit_bytes(unit: str) -> int:
    """Bytes of a unit such as "MiB", "MB", "kb" or "bytes"."""
    letter = unit[:1].upper()
    return 1024 ** _POWERS[letter] if letter in "KMGT" else 1


def split_heading(heading: str) -> tuple[str, int | None]:
    """A column's heading without its unit, and the unit in bytes; None if it names none."""
    match = _HEADING.match(heading.strip())
    if match is None:
        return heading.strip(), None
    return match["name"].strip(" _[("), unit_bytes(match["unit"])


def parse_number(text: str, *, decimal_comma: bool = False) -> float:
    """A number with or without grouped digits: "8,192", "8 192", "8.192,5" with a decimal comma.

    Raises AmountError.
    """
    digits = _GROUPS.sub("", text.strip())
    point, group = (",", ".") if decimal_comma else (".", ",")
    if group in digits:
        if not re.fullmatch(
            rf"[-+]?\d{{1,3}}(?:{re.escape(group)}\d{{3}})+(?:{re.escape(point)}\d*)?", digits
        ):
            # One separator that cannot group digits is a decimal sign of the other habit.
            if digits.count(group) == 1 and point not in digits:
                digits = digits.replace(group, point)
            else:
                raise AmountError(f'"{text}" is no number')
        digits = digits.replace(group, "")
    try:
        number = float(digits.replace(point, "."))
    except ValueError:
        raise AmountError(f'"{text}" is no number') from None
    if not math.isfinite(number):
        raise AmountError(f'"{text[:40]}" is no finite number')
    return number


def parse_amount(
    text: str, heading_unit: int | None, *, decimal_comma: bool = False
) -> tuple[float, int]:
    """Bytes of a cell, and the unit that counted. A unit in the cell goes before the heading's.

    Raises AmountError if the text is no amount, is negative, or if neither names a unit.
    """
    match = _CELL.match(text)
    if match is None:
        raise AmountError(f'"{text}" is no amount of memory')
    number = parse_number(match["number"], decimal_comma=decimal_comma)
    unit = unit_bytes(match["unit"]) if match["unit"] else heading_unit
    if unit is None:
        raise AmountError(f'"{text}" has no unit; write it in the heading, such as memory_mib')
    if number < 0:
        raise AmountError(f'"{text}" is negative')
    if number * unit >= _MOST_BYTES:
        raise AmountError(f'"{text[:40]}" is more than any machine has')
    return number * unit, unit


def pages_of(size: float) -> float:
    """4 KiB pages of a number of bytes."""
    return size / PAGE_BYTES
