# SPDX-License-Identifier: Apache-2.0
"""Taking frames away from guest pages, and where their content goes: whole arrays at once.

Pages pass through the stores in the order the VMkernel says: the first store that takes a page
keeps it. A page of zeroes needs no keeping. When a store is full, the pages kept there longest may
move on to the stores behind it (*spilling*). A page that nobody takes keeps a frame: content is
never lost. Giving up a shared frame may free nothing, so shared pages are evicted apart, and hold
on to their frames until each has found a place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES, MpnArray, PpnArray
from memvirt.machine.content import Pages

from .content import COMPRESS, SWAP, PageContents
from .pmap import PageState
from .stores.backing import FULL, PageCorrupted

_BATCH = 512  # pages copied at a time


@dataclass(frozen=True, slots=True)
class EvictionOrder:
    """Which stores are tried, in order; those of ``spilling`` make room when they are full."""

    stores: tuple[str, ...]
    spilling: frozenset[str] = frozenset()
    drop_zeroes: bool = True


@dataclass(frozen=True, slots=True)
class Eviction:
    """Numbers of pages by where their content went.

    ``placed``: evicted pages, by store. ``spilled``: older pages that made room in another store,
    by the store they moved to. ``discarded``: pages of zeroes. ``refused``: they keep a frame.
    """

    discarded: int = 0
    refused: int = 0
    placed: Mapping[str, int] = field(default_factory=dict)
    spilled: Mapping[str, int] = field(default_factory=dict)

    @property
    def unmapped(self) -> int:
        """Pages that have no frame any more."""
        return self.discarded + sum(self.placed.values())

    def put_into(self, store: str) -> int:
        """Pages that went into ``store``, evicted or spilled."""
        return self.placed.get(store, 0) + self.spilled.get(store, 0)

    def __add__(self, other: Eviction) -> Eviction:
        return Eviction(
            self.discarded + other.discarded,
            self.refused + other.refused,
            Counter(self.placed) + Counter(other.placed),
            Counter(self.spilled) + Counter(other.spilled),
        )


def default_order(contents: PageContents) -> EvictionOrder:
    """The order for a VM nobody has a policy for: compress, what else there is, swap."""
    rank = {COMPRESS: 0, SWAP: 2}
    names = tuple(sorted(contents.stores, key=lambda name: rank.get(name, 1)))
    return EvictionOrder(names, frozenset(names[:-1]))


def evict(contents: PageContents, ppns: PpnArray, order: EvictionOrder) -> Eviction:
    """Take the frames of resident pages (distinct)."""
    contents.invalidate(ppns)
    total = Eviction()
    shared = contents.pmap.state[ppns] == PageState.SHARED
    for pages, are_shared in ((ppns[~shared], False), (ppns[shared], True)):
        for start in range(0, pages.size, _BATCH):
            total += _evict_batch(contents, pages[start : start + _BATCH], are_shared, order)
    return total


def _evict_batch(
    contents: PageContents, pages: PpnArray, shared: bool, order: EvictionOrder
) -> Eviction:
    machine, left = contents.machine, pages
    mpns = contents.pmap.mpns_of(pages)
    rows = machine.content.reshape(-1, PAGE_BYTES)[mpns]
    if not shared:  # the frames go first: compressed pages find room even on a full machine
        machine.release(mpns)
    contents.empty(pages)
    if order.drop_zeroes:
        used = rows.view(np.uint64).any(axis=1)
        left, rows = left[used], rows[used]
    discarded = int(mpns.size - left.size)
    placed: Counter[str] = Counter()
    spilled: Counter[str] = Counter()
    stores = [name for name in order.stores if name in contents.stores]
    for position, name in enumerate(stores):
        if left.size == 0:
            break
        slots = contents.put(name, left, rows)
        full = slots == FULL
        if full.any() and name in order.spilling:
            # Pages of this very batch may be the oldest that must leave.
            behind = stores[position + 1 :]
            spilled += _spill(contents, name, behind, int(np.count_nonzero(full)))
            slots[full] = contents.put(name, left[full], rows[full])
        taken = slots >= 0
        placed[name] += int(np.count_nonzero(taken))
        left, rows = left[~taken], rows[~taken]
    if shared:
        _leave_shared(contents, pages, mpns, np.isin(pages, left))
    else:
        contents.put_in_frames(left, rows)
    return Eviction(discarded, int(left.size), placed, spilled)


def _spill(contents: PageContents, name: str, behind: list[str], count: int) -> Counter[str]:
    """Move pages kept longest in store ``name`` to those ``behind`` it; pages that went, by store.

    A page that turns out to be damaged stays: that it is lost is the matter of the guest that
    touches it, not of the pages that are on their way out now.
    """
    store, moved = contents.stores[name], Counter[str]()
    ppns, slots, rows = [], [], []
    for ppn, slot in store.oldest(count):
        try:
            rows.append(store.read(slot))
        except PageCorrupted:
            continue
        ppns.append(ppn)
        slots.append(slot)
    if not ppns:
        return moved
    left, old = PpnArray(np.array(ppns, np.int64)), np.array(slots, np.int64)
    pages: Pages = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, PAGE_BYTES)
    for other in behind:
        if left.size == 0:
            break
        taken = contents.put(other, left, pages) >= 0
        store.discard(old[taken].tolist())
        moved[other] += int(np.count_nonzero(taken))
        left, old, pages = left[~taken], old[~taken], pages[~taken]
    store.settle()
    return moved


def _leave_shared(contents: PageContents, ppns: PpnArray, mpns: MpnArray, stay: Any) -> None:
    """Give refused pages (``stay``) their shared frames again, and let go of the others'."""
    contents.pmap.frame[ppns[stay]] = mpns[stay]
    contents.pmap.set_states(PpnArray(ppns[stay]), PageState.SHARED)
    if not stay.all():
        contents.machine.release(mpns[~stay])
