# SPDX-License-Identifier: Apache-2.0
"""Pages that are alike but not equal: keys to find them by, and the size of a patch between two.

Difference Engine (Gupta et al., OSDI 2008, section 3) finds candidates by hashes of two 64-byte
blocks at fixed random places of a page, and keeps a page as a patch against a similar one if the
patch is at most half a page. It made its patches with xdelta, which also finds content that has
moved; the patch here is positional, runs of bytes that differ from the reference at the same place:
one pass over memory, and a lower bound of what xdelta saves.

A patch is a list of runs: offset and length (12 bits each, so 3 bytes) and the run's bytes. Runs
closer than 3 bytes are one run, since a new run would cost more than the bytes between.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES
from memvirt.compiled import compiled

BLOCK_BYTES = 64
RUN_HEADER = 3
PATCH_HEADER = 8  # the reference's number, and the number of runs
_WORDS = PAGE_BYTES // 8
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_ZERO, _ONE, _SHIFT = np.uint64(0), np.uint64(1), np.uint64(29)

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Keys = np.ndarray[tuple[int, int], np.dtype[np.uint64]]
Words = np.ndarray[Any, np.dtype[np.uint64]]
Sizes = np.ndarray[tuple[int], np.dtype[np.int32]]


@compiled
def _block_keys(words: Words, places: np.ndarray[Any, np.dtype[np.int64]], out: Keys) -> None:
    for row in range(words.shape[0]):
        for place in range(places.size):
            key, seen = _MULTIPLIER + np.uint64(place), _ZERO
            for i in range(8):
                word = words[row, places[place] + i]
                seen |= word
                key = (key ^ word) * _MULTIPLIER
                key ^= key >> _SHIFT
            out[row, place] = _ZERO if seen == _ZERO else key | _ONE


@compiled
def _patch_size(
    page: Bytes, words: Words, reference: Bytes, reference_words: Words, most: int
) -> int:
    size, end, offset = PATCH_HEADER, -RUN_HEADER - 1, 0
    while offset < PAGE_BYTES:
        if words[offset >> 3] == reference_words[offset >> 3]:
            offset += 8
            continue
        for byte in range(offset, offset + 8):
            if page[byte] != reference[byte]:
                if byte - end <= RUN_HEADER:
                    size += byte - end
                else:
                    size += RUN_HEADER + 1
                end = byte
        if size > most:
            return most + 1
        offset += 8
    return size


@compiled
def _patch_sizes(
    pages: Bytes, words: Words, references: Bytes, reference_words: Words, most: int, out: Sizes
) -> None:
    for row in range(out.size):
        out[row] = _patch_size(pages[row], words[row], references[row], reference_words[row], most)


def block_keys(pages: Bytes, places: tuple[int, ...]) -> Keys:
    """Keys of 64-byte blocks of each page: shape (pages, places). A block of zeroes has key 0.

    ``pages``: shape (n, 4096), contiguous; ``places``: the blocks' numbers in a page (0 to 63).
    """
    out = np.empty((pages.shape[0], len(places)), np.uint64)
    words = pages.reshape(-1).view(np.uint64).reshape(-1, _WORDS)
    _block_keys(words, np.array(places, np.int64) * (BLOCK_BYTES // 8), out)
    return out


def patch_sizes(pages: Bytes, references: Bytes, most: int = PAGE_BYTES) -> Sizes:
    """Bytes of the patch that makes each page of the reference beside it (both (n, 4096)).

    Beyond ``most`` the size is given as ``most + 1``: it is not worth more work.
    """
    out = np.empty(pages.shape[0], np.int32)
    _patch_sizes(
        pages, pages.reshape(-1).view(np.uint64).reshape(-1, _WORDS),
        references, references.reshape(-1).view(np.uint64).reshape(-1, _WORDS), most, out,
    )  # fmt: skip
    return out
