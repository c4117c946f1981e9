# SPDX-License-Identifier: Apache-2.0
"""Exceptions by their mnemonics (Intel SDM vol. 3A, table 6-1), for people to read."""

from __future__ import annotations

EXCEPTION_NAMES = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF",
    10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC",
    19: "#XM", 20: "#VE", 21: "#CP",
}  # fmt: skip
_WITH_ERROR_CODE = (8, 10, 11, 12, 13, 14, 17, 21)
PAGE_FAULT = 14


def exception_name(vector: int) -> str:
    """The mnemonic, or "vector N"."""
    return EXCEPTION_NAMES.get(vector, f"vector {vector:#x}")


def describe_exception(vector: int, error: int, gva: int | None = None) -> str:
    """The mnemonic, with the error code where there is one, and the address of a page fault."""
    text = exception_name(vector)
    if vector in _WITH_ERROR_CODE:
        text += f"({error:#x})"
    if vector == PAGE_FAULT and gva is not None:
        text += f" at gVA {gva & (1 << 64) - 1:#x}"
    return text
