# SPDX-License-Identifier: Apache-2.0
"""Whole frames by content: hashes, zero pages, equality. What a scan of machine memory does.

The hash is that of ``page_hash``, XXH3-64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES
from memvirt.compiled import compiled

from .page_compare import equal_page
from .page_hash import hash_page

WORDS_PER_PAGE = PAGE_BYTES // 8
Pages = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]
Words = np.ndarray[tuple[int, int], np.dtype[np.uint64]]  # a row of 512 for each page
Rows = np.ndarray[tuple[int], np.dtype[np.int64]]
Verdicts = np.ndarray[tuple[int], np.dtype[np.bool_]]

_ZERO = np.uint64(0)


@compiled
def _hash_rows(content_at: int, rows: Rows, out: Hashes) -> None:
    for i in range(rows.size):
        out[i] = hash_page(content_at + rows[i] * PAGE_BYTES)


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
def _find_equal_rows(content_at: int, rows: Rows, others: Rows, out: Verdicts) -> None:
    last = rows.size - 1
    for i in range(rows.size):
        out[i] = equal_page(
            content_at + rows[i] * PAGE_BYTES,
            content_at + others[i] * PAGE_BYTES,
            content_at + rows[min(i + 1, last)] * PAGE_BYTES,
        )


def _check_rows(content: np.ndarray[Any, np.dtype[np.uint8]], rows: np.ndarray[Any, Any]) -> None:
    """Raise IndexError if ``content`` has not all pages ``rows``."""
    pages = content.size // PAGE_BYTES
    if rows.size and not 0 <= rows.min() <= rows.max() < pages:
        raise IndexError(f"rows {rows.min()} to {rows.max()}: the content has {pages} pages")


def hash_pages(content: np.ndarray[Any, np.dtype[np.uint8]], rows: np.ndarray[Any, Any]) -> Hashes:
    """XXH3-64 of each page ``rows`` of ``content`` (uint8, whole pages): shape (rows.size,).

    Raises IndexError if there is no such page.
    """
    content = np.ascontiguousarray(content)
    _check_rows(content, rows)
    out = np.empty(rows.size, np.uint64)
    _hash_rows(int(content.ctypes.data), rows.astype(np.int64), out)
    return out


def zero_pages(
    content: np.ndarray[Any, np.dtype[np.uint8]], rows: np.ndarray[Any, Any]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of the pages ``rows`` of ``content`` hold nothing but zeroes."""
    out = np.empty(rows.size, np.bool_)
    words = content.view(np.uint64).reshape(-1, WORDS_PER_PAGE)
    _find_zero_rows(words, rows.astype(np.int64), out)
    return out


def equal_pages(
    content: np.ndarray[Any, np.dtype[np.uint8]],
    rows: np.ndarray[Any, Any],
    others: np.ndarray[Any, Any],
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of the pages ``rows`` of ``content`` equal the page ``others`` has beside each.

    Raises IndexError if there is no such page.
    """
    content = np.ascontiguousarray(content)
    _check_rows(content, rows)
    _check_rows(content, others)
    out = np.empty(rows.size, np.bool_)
    _find_equal_rows(int(content.ctypes.data), rows.astype(np.int64), others.astype(np.int64), out)
    return out
