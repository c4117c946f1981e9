# SPDX-License-Identifier: Apache-2.0
"""What a case of damage is, and damage of one field.

A case is (paging modes, what is damaged, the invariant, text of where, of what is found, of what is
expected).
"""

from __future__ import annotations

from typing import NamedTuple

from memvirt.vmm.monitor import PagingMode

from .corruption import (
    Damage,
    Subject,
)

SHADOW, NESTED = (PagingMode.SHADOW,), (PagingMode.NESTED,)
BOTH = SHADOW + NESTED


class Case(NamedTuple):
    modes: tuple[PagingMode, ...]
    damage: Damage
    invariant: str
    where: str
    found: str
    expected: str


def put(array_of: str, index: int, value: int) -> Damage:
    """Damage one element of a pmap array."""

    def damage(s: Subject) -> None:
        getattr(s.vmm.pmap, array_of)[index] = value

    return damage


def frame_field(ppn: int, field: str, value: int) -> Damage:
    """Damage what the machine's metadata say of the frame of a page."""

    def damage(s: Subject) -> None:
        getattr(s.machine, field)[s.frame(ppn)] = value

    return damage


def count(name: str, by: int = 1) -> Damage:
    return lambda s: s.set_counter(name, s.counter(name) + by)
