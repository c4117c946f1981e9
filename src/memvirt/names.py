# SPDX-License-Identifier: Apache-2.0
"""Things chosen by name: an unknown name is one clear error with the names there are."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from memvirt.errors import MemvirtError

T = TypeVar("T")


class UnknownName(MemvirtError, ValueError):
    """A name that stands for nothing; the message lists those that do."""


def choose(table: Mapping[str, T], name: str, *, what: str) -> T:
    """The entry of ``table`` called ``name``.

    Raises UnknownName: the message says what was to be chosen, and the names there are.
    """
    try:
        return table[name]
    except (KeyError, TypeError):
        close = get_close_matches(name, table, 1) if isinstance(name, str) else []
        meant = f"did you mean {close[0]}? " if close else ""
        allowed = ", ".join(table)
        raise UnknownName(f"no {what} {name!r}; {meant}there are: {allowed}") from None
