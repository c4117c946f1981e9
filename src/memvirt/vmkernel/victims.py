# SPDX-License-Identifier: Apache-2.0
"""Which pages of a VM to take.

ESXi takes random ones: the guest's own choice is unknown, and random never agrees with the guest in
the worst way (OSDI 2002 section 3.1: the double paging problem). Better, where it costs little, is
a *second chance*: the translations of random pages are taken back some time before, and those that
the guest has not touched since go first. ``bench/swap_victims`` compares the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .guest_memory import GuestMemory, Ppns
from .options import SwapVictims

_CHANCE = 4  # pages given a second chance for each page expected to be taken
_CHANCE_MAXIMUM = 1024


def choose_victims(
    guest: GuestMemory, count: int, how: SwapVictims, random: np.random.Generator
) -> Ppns:
    """Up to ``count`` pages of the VM whose unmapping frees frames.

    Pages that others share too come last: each frees only its part of a frame.
    """
    pages: Any = guest.reclaimable_pages()
    if pages.size <= count:
        others = np.setdiff1d(guest.shared_pages(), pages)
        return np.concatenate((pages, random.permutation(others)[: count - pages.size]))
    if how is SwapVictims.RANDOM:
        return np.asarray(random.choice(pages, count, replace=False))
    idle = guest.idle(pages)
    quiet = random.permutation(pages[idle])[:count]
    others = random.permutation(pages[~idle])[: count - quiet.size]
    return np.concatenate((quiet, others))


def give_second_chance(guest: GuestMemory, expected: int, random: np.random.Generator) -> int:
    """Watch random private pages from now on; returns how many.

    The guest pays a hidden fault for each one it touches.
    """
    pages: Any = guest.reclaimable_pages()
    pages = pages[~guest.idle(pages)]
    count = min(_CHANCE * expected, _CHANCE_MAXIMUM, pages.size)
    if count > 0:
        guest.watch(random.choice(pages, count, replace=False))
    return int(count)
