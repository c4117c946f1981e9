# SPDX-License-Identifier: Apache-2.0
"""Frames of equal content, found in one compiled pass over those that a scan looks at.

A frame is hashed, its hash looked up, and the frame found there compared, while the one scanned is
in the processor's first-level cache: hashing many and then comparing them would read each twice
from memory.
"""

from __future__ import annotations

import numpy as np

from memvirt.address import PAGE_BYTES
from memvirt.compiled import compiled
from memvirt.share_table import Keys, Mpns, frame_slot

from .kinds import FrameKind
from .page_compare import equal_page
from .page_hash import hash_page

_SHARED = int(FrameKind.SHARED)
_ZERO, _ONE = np.uint64(0), np.uint64(1)

_U8 = np.ndarray[tuple[int], np.dtype[np.uint8]]
_U32 = np.ndarray[tuple[int], np.dtype[np.uint32]]
_I32 = np.ndarray[tuple[int], np.dtype[np.int32]]


@compiled
def find_equal_frames(
    memory_at: int,
    mpns: _U32,
    frame_keys: Keys,
    frame_mpns: Mpns,
    kinds: _U8,
    details: _I32,
    detail: int,
    hashes: Keys,
    found: Mpns,
) -> None:
    """See ``MachineMemory.find_equal``. ``detail`` is that of the SHARED frames that may be found;
    ``memory_at`` is the host address of frame 0."""
    last = mpns.size - 1
    for i in range(mpns.size):
        mpn = int(mpns[i])
        hashes[i] = hash_page(memory_at + mpn * PAGE_BYTES)
        found[i] = -1
        key = hashes[i] if hashes[i] != _ZERO else _ONE
        at = frame_slot(frame_keys, key)
        if frame_keys[at] == key:
            other = frame_mpns[at]
            if other >= kinds.size:  # a table of other machine memory
                continue
            if kinds[other] == _SHARED and details[other] == detail:
                following = int(mpns[min(i + 1, last)])
                if equal_page(
                    memory_at + mpn * PAGE_BYTES,
                    memory_at + other * PAGE_BYTES,
                    memory_at + following * PAGE_BYTES,
                ):
                    found[i] = other
