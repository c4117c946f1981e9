# SPDX-License-Identifier: Apache-2.0
"""References of frames, counted in compiled passes over lists of MPNs.

The references of a SHARED frame are -1 minus its word in ``owners`` (``MachineMemory.owner``);
a frame of any other use has one. A pass checks all of a list before it changes anything for good.
"""

from __future__ import annotations

import numpy as np

from memvirt.compiled import compiled

from .free_list import Links
from .kinds import NOBODY, FrameKind

_FREE, _SHARED, _NOBODY = int(FrameKind.FREE), int(FrameKind.SHARED), NOBODY
_LEAVING, _KIND = 0x80, 0x7F  # beside the kind: this frame has lost its only reference

Mpns = np.ndarray[tuple[int], np.dtype[np.uint32]]
Kinds = np.ndarray[tuple[int], np.dtype[np.uint8]]
Owners = np.ndarray[tuple[int], np.dtype[np.int32]]


@compiled
def add_references(mpns: Mpns, kinds: Kinds, owners: Owners) -> int:
    """One more reference of a SHARED frame for each time it is in ``mpns``.

    Returns -1, or the index of a frame that is of another kind: then nothing has changed.
    """
    for i in range(mpns.size):
        if kinds[mpns[i]] != _SHARED:
            return i
    for i in range(mpns.size):
        owners[mpns[i]] -= 1
    return -1


@compiled
def _give_again(mpns: Mpns, kinds: Kinds, owners: Owners) -> None:
    for i in range(mpns.size):
        if kinds[mpns[i]] == _SHARED:
            owners[mpns[i]] -= 1
        else:
            kinds[mpns[i]] &= _KIND


@compiled
def drop_references(mpns: Mpns, kinds: Kinds, owners: Owners) -> int:
    """One reference less of a frame for each time it is in ``mpns``; then ``free_unreferenced``.

    Returns -1, or the index where a frame is listed that has none left: then nothing has changed.
    """
    for i in range(mpns.size):
        mpn = mpns[i]
        kind = kinds[mpn]
        if kind == _SHARED and owners[mpn] < _NOBODY:
            owners[mpn] += 1
        elif kind == _FREE or kind == _SHARED or kind & _LEAVING:
            _give_again(mpns[:i], kinds, owners)
            return i
        else:
            kinds[mpn] = kind | _LEAVING
    return -1


@compiled
def free_unreferenced(
    mpns: Mpns, kinds: Kinds, owners: Owners, links: Links, first: int
) -> tuple[int, int]:
    """Put those of ``mpns`` without a reference on the free list that begins with ``first``.

    Returns how it begins now, and how many frames became free.
    """
    freed = 0
    for i in range(mpns.size):
        mpn = mpns[i]
        kind = kinds[mpn]
        if kind & _LEAVING or (kind == _SHARED and owners[mpn] == _NOBODY):
            kinds[mpn] = _FREE
            owners[mpn] = _NOBODY
            links[mpn] = first
            first = int(mpn)
            freed += 1
    return first, freed
