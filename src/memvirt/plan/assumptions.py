# SPDX-License-Identifier: Apache-2.0
"""What the data does not tell, as ranges; and draws from them that do not depend on who computes.

The default ranges are wide on purpose, and each has its source. A plan is computed for the most
hopeful and the most pessimistic end of all ranges, and for seeded draws between them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .fleet import UNKNOWN, Fleet
from .units import AmountError

Pages = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Range:
    """A part between 0 and 1 that lies somewhere in [low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise AmountError(f"{self.low:.0%}..{self.high:.0%} is no range between 0% and 100%")

    def at(self, position: float) -> float:
        return self.low + (self.high - self.low) * position

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:.0%}"
        return f"{self.low:.0%} to {self.high:.0%}"


def parse_range(text: str, what: str) -> Range:
    """ "30%", "20%..60%" or "0.2..0.6". Raises AmountError that names ``what``."""
    match = re.fullmatch(
        r"\s*(\d+(?:\.\d+)?)(%?)\s*(?:(?:\.\.|-|to)\s*(\d+(?:\.\d+)?)(%?))?\s*", text
    )
    try:
        if match is None:
            raise ValueError
        percent = "%" in (match[2], match[4])
        low = float(match[1]) / (100 if percent else 1)
        high = low if match[3] is None else float(match[3]) / (100 if percent else 1)
        return Range(low, high)
    except ValueError as error:
        detail = f" ({error})" if isinstance(error, AmountError) else ""
        raise AmountError(f'{what}: "{text}" is no part{detail}; write 30% or 20%..60%') from None


@dataclass(frozen=True, slots=True)
class Unknowns:
    """Ranges of what measurements do not tell.

    ``in_use``: where memory in use was not measured, its place between active (0) and configured
    memory (1). ``active``: where activity was not measured, active memory as a part of that in use;
    published working sets lie anywhere, so all of the range is tried. ``compressible``: pages that
    shrink to a half. ``shared``: memory that sharing saves while memory is short; off unless asked
    for, since VMs of different owners do not share by default (Mem.ShareForceSalting 2).
    """

    in_use: Range = Range(0.25, 1.0)
    active: Range = Range(0.05, 0.5)
    compressible: Range = Range(0.2, 0.8)
    shared: Range = Range(0.0, 0.0)


# Reclaimed by sharing in production servers: 7.2 % (five Linux servers) to 32.9 % (ten Windows NT
# servers), Waldspurger, OSDI 2002, section 4 ("real-world" measurements).
SHARING_ON = Range(0.072, 0.329)


@dataclass(frozen=True, slots=True)
class Draw:
    """One value for each unknown."""

    in_use: float
    active: float
    compressible: float
    shared: float

    def demand(self, fleet: Fleet) -> tuple[Pages, Pages]:
        """In-use and active pages of each VM at each point; both 0 where it is off."""
        memory = np.array([vm.settings.memory for vm in fleet.vms], np.float64)[:, None]
        in_use, active = fleet.in_use.astype(np.float64), fleet.active.astype(np.float64)
        no_active = active == UNKNOWN
        base = np.where(no_active, 0.0, active)
        in_use = np.where(in_use == UNKNOWN, base + self.in_use * (memory - base), in_use)
        active = np.where(no_active, self.active * in_use, active)
        off = np.isnan(in_use)
        return np.where(off, 0.0, in_use), np.where(off, 0.0, np.minimum(active, in_use))


def best_and_worst(unknowns: Unknowns) -> tuple[Draw, Draw]:
    """The most hopeful and the most pessimistic end of all ranges."""
    low, high = unknowns, unknowns
    best = Draw(low.in_use.low, low.active.low, high.compressible.high, high.shared.high)
    worst = Draw(high.in_use.high, high.active.high, low.compressible.low, low.shared.low)
    return best, worst


def draws(unknowns: Unknowns, count: int, seed: int) -> list[Draw]:
    """Both ends, then draws between; the n-th depends on n and the seed alone."""
    out = list(best_and_worst(unknowns))
    if out[0] == out[1]:
        return out[:1]
    for number in range(2, count):
        at = np.random.default_rng((seed, number)).random(4)
        out.append(
            Draw(
                unknowns.in_use.at(at[0]), unknowns.active.at(at[1]),
                unknowns.compressible.at(at[2]), unknowns.shared.at(at[3]),
            )
        )  # fmt: skip
    return out[: max(count, 2)]
