# SPDX-License-Identifier: Apache-2.0
"""Which pages of a VM to take.

ESXi takes random ones: the guest's own choice is unknown, and random never agrees with the guest in
the worst way (OSDI 2002 section 3.1: the double paging problem). Better, where it costs little, is
a *second chance*: the translations of random pages are taken back some time before, and those that
the guest has not touched since go first. ``bench/swap_victims`` compares the two.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from memvirt.address import PpnArray

from .protocols import GuestMemory

_CHANCE = 4  # pages given a second chance for each page expected to be taken
_CHANCE_MAXIMUM = 1024


class VictimPolicy(Protocol):
    """Chooses which pages of a VM are taken."""

    def choose(
        self, guest: GuestMemory, pages: PpnArray, count: int, random: np.random.Generator
    ) -> PpnArray:
        """``count`` of ``pages``, which are more, and whose eviction frees a frame each."""
        ...

    def prepare(self, guest: GuestMemory, expected: int, random: np.random.Generator) -> None:
        """About ``expected`` pages may have to go soon. Called in states soft and worse."""
        ...


class RandomVictims:
    """As ESXi: no knowledge of the guest is the safest knowledge."""

    def choose(
        self, guest: GuestMemory, pages: PpnArray, count: int, random: np.random.Generator
    ) -> PpnArray:
        return PpnArray(random.choice(pages, count, replace=False))

    def prepare(self, guest: GuestMemory, expected: int, random: np.random.Generator) -> None:
        """Nothing to prepare."""


class IdleVictims:
    """Pages seen untouched since they were watched first, then random ones.

    Random ones only for a VM whose accesses cannot be noticed.
    """

    def choose(
        self, guest: GuestMemory, pages: PpnArray, count: int, random: np.random.Generator
    ) -> PpnArray:
        if guest.sampling is None:
            return RandomVictims().choose(guest, pages, count, random)
        idle = guest.sampling.idle(pages)
        quiet = random.permutation(pages[idle])[:count]
        others = random.permutation(pages[~idle])[: count - quiet.size]
        return PpnArray(np.concatenate((quiet, others)))

    def prepare(self, guest: GuestMemory, expected: int, random: np.random.Generator) -> None:
        give_second_chance(guest, expected, random)


def choose_victims(
    guest: GuestMemory, count: int, policy: VictimPolicy, random: np.random.Generator
) -> PpnArray:
    """Up to ``count`` pages of the VM whose eviction frees frames, as ``policy`` has it.

    Pages that others share too come last: each frees only its part of a frame. None of a VM from
    which no pages can be taken.
    """
    if guest.reclaim is None:
        return PpnArray(np.zeros(0, np.int64))
    pages = guest.reclaim.reclaimable_pages()
    if pages.size > count:
        return policy.choose(guest, pages, count, random)
    others = np.setdiff1d(guest.reclaim.shared_pages(), pages)
    some = random.permutation(others)[: count - pages.size]
    return PpnArray(np.concatenate((pages, some)))


def give_second_chance(guest: GuestMemory, expected: int, random: np.random.Generator) -> int:
    """Watch random private pages from now on; returns how many.

    The guest pays a hidden fault for each one it touches.
    """
    if guest.reclaim is None or guest.sampling is None:
        return 0
    pages = guest.reclaim.reclaimable_pages()
    pages = pages[~guest.sampling.idle(pages)]
    count = min(_CHANCE * expected, _CHANCE_MAXIMUM, pages.size)
    if count > 0:
        guest.sampling.watch(PpnArray(random.choice(pages, count, replace=False)))
    return int(count)
