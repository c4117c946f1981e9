# SPDX-License-Identifier: Apache-2.0
"""Linked lists kept in arrays, followed all at once."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from .violation import Array, Told, Violation


@dataclass(frozen=True, slots=True)
class Links:
    """Every element of a family of lists: which list, which element, which before it."""

    head: Array  # number of the list
    link: Array
    previous: Array  # element before it, -1 for the first of a list


def follow(
    heads: Array, following: Array, name: Callable[[int], str]
) -> Generator[Violation, None, Links]:
    """Follow the lists that begin at ``heads`` (negative: empty) through ``following``.

    A list that leaves the array, runs in a circle or joins another is reported, as the list
    ``name(i)`` of an element, and followed no further. One step of work for each element of the
    longest list.
    """
    lists = np.flatnonzero(heads >= 0)
    links = heads[lists].astype(np.int64)
    previous = np.full(lists.size, -1, np.int64)
    visited = np.zeros(following.size, bool)
    found: list[tuple[Array, Array, Array]] = []
    while lists.size:
        outside = links >= following.size
        told = Told("I1", "elements beyond the array")
        for i in told.first(outside):
            expected = f"an element below {following.size}"
            yield Violation("I1", name(int(lists[i])), f"element {links[i]}", expected)
        yield from told.rest()
        lists, links, previous = lists[~outside], links[~outside], previous[~outside]
        _, first = np.unique(links, return_index=True)
        new = np.zeros(links.size, bool)
        new[first] = True
        new &= ~visited[links]
        told = Told("I1", "elements listed twice")
        for i in told.first(~new):
            found_text = f"element {links[i]} after {previous[i]}, listed before"
            yield Violation("I1", name(int(lists[i])), found_text, "each element once")
        yield from told.rest()
        lists, links, previous = lists[new], links[new], previous[new]
        visited[links] = True
        found.append((lists, links, previous))
        after = following[links].astype(np.int64)
        lists, previous, links = lists[after >= 0], links[after >= 0], after[after >= 0]
    if not found:
        nothing = np.zeros(0, np.int64)
        return Links(nothing, nothing, nothing)
    return Links(*(np.concatenate(column) for column in zip(*found, strict=True)))
