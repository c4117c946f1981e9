# SPDX-License-Identifier: Apache-2.0
"""Which page each page might be a small change of.

Pages with an equal block are candidates for a patch. So that a reference is whole itself, and no
order of work matters, only the lowest-numbered page of all groups it is in may be a reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def references(pages: Array, keys: Array, salts: Array) -> Array:
    """For each page up to two references: numbers plus one, 0 for none; shape (pages, 2).

    ``pages`` rise; ``keys`` has shape (pages, 2), key 0 finds nothing; only pages of one salt are
    compared.
    """
    count, places = keys.shape
    first = np.tile(np.arange(count)[:, None], (1, places))  # lowest page of its group
    for place in range(places):
        order = np.lexsort((np.arange(count), keys[:, place], salts))
        key, salt = keys[order, place], salts[order]
        new = np.ones(count, bool)
        new[1:] = (key[1:] != key[:-1]) | (salt[1:] != salt[:-1])
        heads = order[np.flatnonzero(new)][np.cumsum(new) - 1]
        first[order, place] = np.where(key == 0, order, heads)
    root = (first == np.arange(count)[:, None]).all(axis=1)
    usable = root[first] & (first != np.arange(count)[:, None]) & ~root[:, None]
    out = np.where(usable, pages[first] + np.uint64(1), np.uint64(0))
    out[out[:, 0] == out[:, 1], 1] = 0
    return np.asarray(out, np.uint64)
