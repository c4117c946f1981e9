# SPDX-License-Identifier: Apache-2.0
"""Which pages of a VM to take.

ESXi takes random ones: the guest's own choice is unknown, and random never agrees with the guest in
the worst way (OSDI 2002 section 3.1: the double paging problem). Better, where it costs little, is
a *second chance*: the translations of random pages are taken back some time before, and those that
the guest has not touched since go first. ``bench/swap_victims`` compares the two.

A choice costs as much as it takes, not as much as the VM has: pages are drawn by their numbers
(``draw``). Only where a list of all of them costs no more is there one.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from memvirt.address import PpnArray

from .protocols import GuestMemory, PageReclaim
from .random_pages import FEW, distinct

_CHANCE = 4  # pages given a second chance for each page expected to be taken
_CHANCE_MAXIMUM = 1024
_WATCHED_MAXIMUM = 1 << 14  # pages of a VM remembered to be watched, the last ones
_TRIES = 16  # PPNs of a list that cost as much as one that is drawn and tested
_DRAWS = 8
_SPARE = 1.1  # numbers drawn for each that should be needed
_NONE = PpnArray(np.zeros(0, np.int64))


class VictimPolicy(Protocol):
    """Chooses which pages of a VM are taken. The VM has ``reclaim``."""

    def choose(
        self, guest: GuestMemory, resident: int, count: int, random: np.random.Generator
    ) -> PpnArray:
        """``count`` PPNs whose eviction frees a frame each; the VM has ``resident``, which is more.

        ``draw`` gives random ones, ``guest.reclaim.reclaimable_pages`` all there are.
        """
        ...

    def prepare(self, guest: GuestMemory, expected: int, random: np.random.Generator) -> None:
        """About ``expected`` PPNs may have to go soon. Called in states soft and worse."""
        ...


class RandomVictims:
    """As ESXi: no knowledge of the guest is the safest knowledge."""

    def choose(
        self, guest: GuestMemory, resident: int, count: int, random: np.random.Generator
    ) -> PpnArray:
        return draw(guest, resident, count, random)

    def prepare(self, guest: GuestMemory, expected: int, random: np.random.Generator) -> None:
        """Nothing to prepare."""


class IdleVictims:
    """Pages seen untouched since they were watched first, then random ones.

    Random ones only for a VM whose accesses cannot be noticed.
    """

    def __init__(self) -> None:
        # Of VMs with many pages: those that were watched, in order; some are not idle any more.
        self._watched: WeakKeyDictionary[GuestMemory, PpnArray] = WeakKeyDictionary()

    def choose(
        self, guest: GuestMemory, resident: int, count: int, random: np.random.Generator
    ) -> PpnArray:
        reclaim, sampling = guest.reclaim, guest.sampling
        if sampling is None or reclaim is None:
            return draw(guest, resident, count, random)
        if not _worth_drawing(guest, resident, count):
            pages = reclaim.reclaimable_pages()
            idle = sampling.idle(pages)
            quiet = random.permutation(pages[idle])[:count]
            others = random.permutation(pages[~idle])[: count - quiet.size]
            return PpnArray(np.concatenate((quiet, others)))
        known = self._watched.get(guest, _NONE)
        known = self._watched[guest] = known[sampling.idle(known)]
        quiet = known[reclaim.reclaimable(known)][:count]  # those idle for longest
        others = draw(guest, resident - quiet.size, count - quiet.size, random, but=quiet)
        return PpnArray(np.concatenate((quiet, others)))

    def prepare(self, guest: GuestMemory, expected: int, random: np.random.Generator) -> None:
        watched = give_second_chance(guest, expected, random)
        if guest.pages > FEW and watched.size:
            known = PpnArray(np.concatenate((self._watched.get(guest, _NONE), watched)))
            self._watched[guest] = known[-_WATCHED_MAXIMUM:]


def choose_victims(
    guest: GuestMemory, count: int, policy: VictimPolicy, random: np.random.Generator
) -> PpnArray:
    """PPNs of up to ``count`` pages of the VM whose eviction frees frames, as ``policy`` has it.

    Pages that others share too come last: each frees only its part of a frame. None of a VM from
    which no pages can be taken.
    """
    reclaim = guest.reclaim
    if reclaim is None:
        return _NONE
    count = -(-count // guest.granule)
    private = guest.usage().private // guest.granule if guest.pages > FEW else 0
    if private > count:
        return policy.choose(guest, private, count, random)
    pages = reclaim.reclaimable_pages()
    if pages.size > count:
        return policy.choose(guest, pages.size, count, random)
    others = np.setdiff1d(reclaim.shared_pages(), pages)
    some = random.permutation(others)[: count - pages.size]
    return PpnArray(np.concatenate((pages, some)))


def give_second_chance(guest: GuestMemory, expected: int, random: np.random.Generator) -> PpnArray:
    """Watch random private pages from now on, some for each of ``expected`` PPNs; returns which.

    The guest pays a hidden fault for each one it touches.
    """
    reclaim, sampling = guest.reclaim, guest.sampling
    if reclaim is None or sampling is None:
        return _NONE
    count = min(_CHANCE * expected, _CHANCE_MAXIMUM)
    if guest.pages > FEW:
        pages = draw(guest, guest.usage().private // guest.granule, count, random)
        chosen = pages[~sampling.idle(pages)]
    else:
        pages = reclaim.reclaimable_pages()
        pages = pages[~sampling.idle(pages)]
        chosen = PpnArray(random.choice(pages, min(count, pages.size), replace=False))
    if chosen.size:
        sampling.watch(chosen)
    return chosen


# Random pages --------------------------------------------------------------------------------


def _worth_drawing(guest: GuestMemory, resident: int, count: int) -> bool:
    """True if drawing ``count`` of ``resident`` PPNs costs less than a list of them all."""
    return guest.pages > FEW and resident > _TRIES * count


def draw(
    guest: GuestMemory,
    resident: int,
    count: int,
    random: np.random.Generator,
    *,
    but: PpnArray = _NONE,
) -> PpnArray:
    """Up to ``count`` random PPNs, distinct and not of ``but``, whose eviction frees a frame each.

    ``resident``: how many of those the VM has, about. The guest must have ``reclaim``.
    """
    assert guest.reclaim is not None
    if count <= 0:
        return _NONE
    if not _worth_drawing(guest, resident, count):
        pages = guest.reclaim.reclaimable_pages()
        if but.size:
            pages = PpnArray(np.setdiff1d(pages, but, assume_unique=True))
        return PpnArray(random.choice(pages, min(count, pages.size), replace=False))
    return _by_number(guest, guest.reclaim, resident, count, random, but)


def _by_number(
    guest: GuestMemory,
    reclaim: PageReclaim,
    resident: int,
    count: int,
    random: np.random.Generator,
    but: PpnArray,
) -> PpnArray:
    """As ``draw``: numbers at random, of which those that will do are kept.

    Fewer than ``count`` come of it only if the VM has far less than ``resident``.
    """
    chosen, per_page = _NONE, guest.pages / resident
    for _ in range(_DRAWS):
        missing = count - chosen.size
        tried = min(int(missing * per_page * _SPARE) + 16, guest.pages)
        numbers = distinct(guest.pages, tried, random)
        numbers = numbers[reclaim.reclaimable(numbers)]
        for taken in (but, chosen):
            if taken.size:
                numbers = numbers[~np.isin(numbers, taken)]
        chosen = PpnArray(np.concatenate((chosen, numbers[:missing])))
        if chosen.size == count:
            break
    return chosen
