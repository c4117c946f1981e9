# SPDX-License-Identifier: Apache-2.0
"""Who is entitled to how much machine memory: shares, reservations, limits, idle memory tax.

Waldspurger, "Memory Resource Management in VMware ESX Server" (OSDI 2002), section 5. A VM with S
shares and P pages, a fraction f of them active, pays rho = S / (P * (f + k * (1 - f))) shares per
page, where an idle page costs k = 1 / (1 - tau) times an active one. Min-funding revocation takes
from the VM with the lowest rho, again and again. Its fixed point is where all VMs that are neither
at their minimum nor at their maximum have the same rho, that is P proportional to their *weight*
S / (f + k * (1 - f)). ``fill`` computes it in closed form for any number of VMs, so that a round
costs a sort and not a step per page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

Amounts = np.ndarray[tuple[int], np.dtype[np.float64]]


def _amounts(values: ArrayLike) -> Amounts:
    return np.asarray(values, np.float64)


def idle_page_cost(tax_percent: float) -> float:
    """k: what an idle page costs, in active pages, at an idle memory tax of 0 to 99 percent."""
    return 1 / (1 - tax_percent / 100)


def weights(shares: ArrayLike, active: ArrayLike, tax_percent: float) -> Amounts:
    """Shares after the idle memory tax. ``active`` is the active fraction of each VM (0 to 1)."""
    fraction = np.clip(_amounts(active), 0, 1)
    cost = fraction + idle_page_cost(tax_percent) * (1 - fraction)
    return _amounts(_amounts(shares) / cost)


def fill(total: float, weight: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> Amounts:
    """Distribute ``total`` in proportion to ``weight``, each amount kept in [lower, upper].

    Finds the level L with sum(clip(L * weight, lower, upper)) = total. If all minima do not fit,
    everybody gets the minimum; if all maxima do, the maximum. ``lower <= upper`` and positive
    weights are the caller's promise. Cost: a sort of two breakpoints for each VM.
    """
    claims, least, most = _amounts(weight), _amounts(lower), _amounts(upper)
    if total <= least.sum():
        return np.asarray(least.copy())
    if total >= most.sum():
        return np.asarray(most.copy())
    # Where L * weight leaves its lower bound the sum gains slope, where it meets the upper
    # bound it loses it again: the sum is piecewise linear in L.
    levels = np.concatenate((least / claims, most / claims))
    slopes = np.concatenate((claims, -claims))
    order = np.argsort(levels, kind="stable")
    levels, slope = levels[order], np.cumsum(slopes[order])
    rise = np.concatenate(([0.0], np.cumsum(slope[:-1] * np.diff(levels))))
    sums = least.sum() + rise
    segment = int(np.searchsorted(sums, total, side="right")) - 1
    level = levels[segment]
    if slope[segment] > 0:
        level += (total - sums[segment]) / slope[segment]
    return np.clip(level * claims, least, most)


def revoke(need: float, weight: ArrayLike, pages: ArrayLike, lower: ArrayLike) -> Amounts:
    """Min-funding revocation: how many pages to take from each VM so that ``need`` are freed.

    Pages come from the VMs with the lowest shares per page until they are level with the next.
    No VM falls below ``lower`` (its reservation); less than ``need`` is taken if all are there.
    """
    had = _amounts(pages)
    floor = np.minimum(_amounts(lower), had)
    return had - fill(float(had.sum()) - need, weight, floor, had)


def targets(
    total: float, weight: ArrayLike, minimum: ArrayLike, maximum: ArrayLike, demand: ArrayLike
) -> Amounts:
    """The memory each VM is entitled to now, of ``total`` pages for all.

    First as far as each VM has any use for it (``demand``), so that what one does not use goes to
    others; what is left then goes up to each one's ``maximum``, in the same proportion.
    """
    most = _amounts(maximum)
    wanted = np.clip(_amounts(demand), _amounts(minimum), most)
    entitled = fill(total, weight, minimum, wanted)
    spare = total - float(entitled.sum())
    if spare <= 0:
        return entitled
    return fill(total, weight, entitled, most)


# Policies ------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """One VM's claim on machine memory. Amounts are pages, ``active`` is a fraction (0 to 1)."""

    shares: int
    active: float
    memory: int  # configured
    reservation: int
    maximum: int  # its limit, or its memory
    consumed: float
    demand: float  # what it has a use for


class AllocationPolicy(Protocol):
    """Decides who is entitled to how much, and who gives when memory is short."""

    def targets(self, total: float, claims: Sequence[Claim]) -> Amounts:
        """Pages each VM is entitled to, of ``total`` for all."""
        ...

    def revoke(self, need: float, claims: Sequence[Claim]) -> Amounts:
        """Pages to take from each VM so that ``need`` come free; less if there are not so many.

        Obligation: nobody falls below its reservation.
        """
        ...


class WeightedAllocation:
    """Memory in proportion to a weight. Subclasses say which."""

    def weights(self, claims: Sequence[Claim]) -> Amounts:
        """The weight of each claim, above 0."""
        raise NotImplementedError

    def targets(self, total: float, claims: Sequence[Claim]) -> Amounts:
        """As ``AllocationPolicy``: demand first, then what is left."""
        return targets(
            total,
            self.weights(claims),
            [min(claim.reservation, claim.maximum) for claim in claims],
            [claim.maximum for claim in claims],
            [claim.demand for claim in claims],
        )

    def revoke(self, need: float, claims: Sequence[Claim]) -> Amounts:
        """As ``AllocationPolicy``: min-funding revocation."""
        return revoke(
            need,
            self.weights(claims),
            [claim.consumed for claim in claims],
            [claim.reservation for claim in claims],
        )


class SharesAllocation(WeightedAllocation):
    """ESXi's: shares after the idle memory tax, in percent."""

    def __init__(self, idle_tax: float) -> None:
        self._idle_tax = idle_tax

    def weights(self, claims: Sequence[Claim]) -> Amounts:
        active = [claim.active for claim in claims]
        return weights([claim.shares for claim in claims], active, self._idle_tax)


class SizeAllocation(WeightedAllocation):
    """By configured memory alone: every VM shrinks alike, whoever needs it. To compare with."""

    def weights(self, claims: Sequence[Claim]) -> Amounts:
        return np.array([max(claim.memory, 1) for claim in claims], np.float64)
