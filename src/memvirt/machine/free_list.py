# SPDX-License-Identifier: Apache-2.0
"""The list of free frames, last in, first out, linked through the word that each frame has.

A free frame's word (``links``, by MPN) is the MPN of the next one: the list costs no memory of its
own. Links are read by compiled code, one after the other, and written by whole arrays.
"""

from __future__ import annotations

import numpy as np

from memvirt.address import MpnArray
from memvirt.compiled import compiled

Links = np.ndarray[tuple[int], np.dtype[np.uint32]]
END = 0xFFFF_FFFF  # no next frame


@compiled
def _follow(links: Links, first: int, out: Links) -> int:
    """Write the MPNs from ``first`` on to ``out``; returns how many, and stops at the first that
    is no frame."""
    mpn = np.int64(first)
    for count in range(out.size):
        out[count] = mpn
        if mpn >= links.size:
            return count
        mpn = np.int64(links[mpn])
    return int(out.size)


class FreeList:
    """The free frames, whose words in ``links`` (uint32 by MPN) it uses while they are on it.

    ``first`` is the MPN that is taken first, END if there is none. ``mpns`` are put on it in order:
    the last of them is taken first.
    """

    def __init__(self, links: Links, mpns: MpnArray) -> None:
        self.links = links
        self.first = END
        self.count = 0
        self.put(mpns)

    def put(self, mpns: MpnArray) -> None:
        """Put frames (distinct, none of them on the list) on it; the last is the first to go."""
        if mpns.size == 0:
            return
        self.links[mpns[1:]] = mpns[:-1]
        self.links[mpns[0]] = self.first
        self.first = int(mpns[-1])
        self.count += int(mpns.size)

    def pushed(self, first: int, count: int) -> None:
        """Compiled code has put ``count`` frames on the list: ``first`` is its first now."""
        self.first = first
        self.count += count

    def take(self, count: int) -> MpnArray:
        """Take ``count`` frames off, which the caller knows there are."""
        taken = np.zeros(count, np.uint32)
        if count:
            _follow(self.links, self.first, taken)
            self.first = int(self.links[taken[-1]])
            self.count -= count
        return MpnArray(taken)

    def remove(self, mpns: MpnArray) -> None:
        """Take these off, wherever they are; the others keep their order. Looks at the whole list.

        All of them are on it: that is the caller's promise.
        """
        rest = self.mpns()[::-1]
        rest = rest[~np.isin(rest, mpns)]
        self.first = END
        self.count = 0
        self.put(rest)

    def mpns(self) -> MpnArray:
        """The frames in the order in which they will be taken.

        Ends early, after a number that is no frame's, if a link is damaged.
        """
        found = np.zeros(self.count, np.uint32)
        size = _follow(self.links, self.first, found)
        return MpnArray(found[: size + 1] if size < self.count else found)
