# SPDX-License-Identifier: Apache-2.0
"""Whole frames by content: hashes, zero pages, equality. What a scan of machine memory does.

Pages come as rows of 512 64-bit words. The hash is XXH64 of the page's 4096 bytes (specification:
"XXH64 algorithm", doc/xxhash_spec.md of the xxHash project), here for inputs of exactly one page.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES
from memvirt.compiled import compiled

WORDS_PER_PAGE = PAGE_BYTES // 8
Pages = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]
Words = np.ndarray[tuple[int, int], np.dtype[np.uint64]]  # a row of 512 for each page
Rows = np.ndarray[tuple[int], np.dtype[np.int64]]
Verdicts = np.ndarray[tuple[int], np.dtype[np.bool_]]

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_STRETCH = 64  # words of a page compared at a time
_ZERO, _BYTES = np.uint64(0), np.uint64(PAGE_BYTES)
_R1, _R7, _R12, _R18, _R31 = (np.uint64(n) for n in (1, 7, 12, 18, 31))
_R29, _R32, _R33, _R64 = (np.uint64(n) for n in (29, 32, 33, 64))


@compiled
def _rotate(word: np.uint64, bits: np.uint64) -> np.uint64:
    return (word << bits) | (word >> (_R64 - bits))


@compiled
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(lane + word * _P2, _R31) * _P1


@compiled
def _merge(state: np.uint64, lane: np.uint64) -> np.uint64:
    return (state ^ _round(_ZERO, lane)) * _P1 + _P4


@compiled
def _hash_row(words: Words, row: int, seed: np.uint64) -> np.uint64:
    a, b, c, d = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
    for i in range(0, WORDS_PER_PAGE, 4):
        a = _round(a, words[row, i])
        b = _round(b, words[row, i + 1])
        c = _round(c, words[row, i + 2])
        d = _round(d, words[row, i + 3])
    state = _rotate(a, _R1) + _rotate(b, _R7) + _rotate(c, _R12) + _rotate(d, _R18)
    state = _merge(_merge(_merge(_merge(state, a), b), c), d) + _BYTES
    state = (state ^ (state >> _R33)) * _P2
    state = (state ^ (state >> _R29)) * _P3
    return state ^ (state >> _R32)


@compiled
def _hash_rows(words: Words, rows: Rows, seed: np.uint64, out: Hashes) -> None:
    for i in range(rows.size):
        out[i] = _hash_row(words, rows[i], seed)


@compiled
def _find_zero_rows(words: Words, rows: Rows, out: Verdicts) -> None:
    for i in range(rows.size):
        zero = True
        for j in range(WORDS_PER_PAGE):
            if words[rows[i], j] != _ZERO:
                zero = False
                break
        out[i] = zero


@compiled
def _equal_rows(words: Words, row: int, other: int) -> bool:
    # A stretch without a branch in it is compared by vector instructions.
    for start in range(0, WORDS_PER_PAGE, _STRETCH):
        differing = _ZERO
        for j in range(start, start + _STRETCH):
            differing |= words[row, j] ^ words[other, j]
        if differing != _ZERO:
            return False
    return True


@compiled
def _find_equal_rows(words: Words, rows: Rows, others: Rows, out: Verdicts) -> None:
    for i in range(rows.size):
        out[i] = _equal_rows(words, rows[i], others[i])


def _words(content: np.ndarray[Any, np.dtype[np.uint8]]) -> Words:
    return content.view(np.uint64).reshape(-1, WORDS_PER_PAGE)


def hash_pages(
    content: np.ndarray[Any, np.dtype[np.uint8]], rows: np.ndarray[Any, Any], seed: int = 0
) -> Hashes:
    """XXH64 of each page ``rows`` of ``content`` (uint8, whole pages): shape (rows.size,)."""
    out = np.empty(rows.size, np.uint64)
    _hash_rows(_words(content), rows.astype(np.int64), np.uint64(seed), out)
    return out


def zero_pages(
    content: np.ndarray[Any, np.dtype[np.uint8]], rows: np.ndarray[Any, Any]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of the pages ``rows`` of ``content`` hold nothing but zeroes."""
    out = np.empty(rows.size, np.bool_)
    _find_zero_rows(_words(content), rows.astype(np.int64), out)
    return out


def equal_pages(
    content: np.ndarray[Any, np.dtype[np.uint8]],
    rows: np.ndarray[Any, Any],
    others: np.ndarray[Any, Any],
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of the pages ``rows`` of ``content`` equal the page ``others`` has beside each."""
    out = np.empty(rows.size, np.bool_)
    _find_equal_rows(_words(content), rows.astype(np.int64), others.astype(np.int64), out)
    return out
