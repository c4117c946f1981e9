# SPDX-License-Identifier: Apache-2.0
"""The format of page states, and what is kept of them, against plain copies."""

from __future__ import annotations

import json
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvirt.web.history import History
from memvirt.web.wire import Parts, decode, encode

_SIZE = 300
_BIG = 200_000  # has gaps beyond 16 bits

Changes = list[list[tuple[bool, int, int]]]  # of each moment: in the big array, index, value

changes = st.lists(
    st.lists(st.tuples(st.booleans(), st.integers(0, _BIG - 1), st.integers(0, 8)), max_size=4),
    min_size=1,
    max_size=20,
)


def _states(made: Changes) -> list[Parts]:
    """Two arrays at each moment."""
    parts: Parts = {"vm:1": np.zeros(_SIZE, np.uint8), "machine": np.zeros(_BIG, np.uint8)}
    states = []
    for moment in made:
        parts = {name: array.copy() for name, array in parts.items()}
        for big, index, value in moment:
            parts["machine" if big else "vm:1"][index if big else index % _SIZE] = value
        states.append(parts)
    return states


def _equal(one: Parts, other: Parts) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@given(changes)
def test_a_receiver_has_what_was_sent(made: Changes) -> None:
    before, have = None, None
    for state in _states(made):
        _, have = decode(encode({"number": 1}, state, before), have)
        before = state
        _equal(have, state)


@given(changes, st.integers(0, _SIZE - 1))
def test_every_moment_and_life_is_kept(made: Changes, page: int) -> None:
    history, states = History(), _states(made)
    with patch("memvirt.web.history._SEGMENT_FRAMES", 6):
        for number, state in enumerate(states, 1):
            history.add(number, json.dumps({"number": number}).encode(), state)
    for number in {1, len(states) // 2 + 1, len(states)}:
        header, parts = history.at(number)
        assert header == {"number": number}
        _equal(parts, states[number - 1])
    lived: list[tuple[int, int]] = []
    for number, state in enumerate(states, 1):
        if not lived or lived[-1][1] != state["vm:1"][page]:
            lived.append((number, int(state["vm:1"][page])))
    found = [(header["number"], value) for header, value in history.life("vm:1", page)]
    assert found == lived


def test_an_array_that_is_gone() -> None:
    """A receiver drops it, and so does every later moment; when it is there again it is whole."""
    machine, screen = np.zeros(9, np.uint8), np.arange(5, dtype=np.uint8)
    states: list[Parts] = [
        {"machine": machine, "screen:1": screen},
        {"machine": machine},
        {"machine": machine},
        {"machine": machine, "screen:1": screen + np.uint8(1)},
    ]
    history, before, have = History(), None, None
    for number, state in enumerate(states, 1):
        header, have = decode(encode({}, state, before), have)
        assert len(header["parts"]) == (2, 1, 0, 1)[number - 1]
        _equal(have, state)
        before = state
        history.add(number, json.dumps({"number": number}).encode(), state)
    for number, state in enumerate(states, 1):
        _equal(history.at(number)[1], state)
    lived = [(header["number"], value) for header, value in history.life("screen:1", 4)]
    assert lived == [(1, 4), (4, 5)]


def test_the_oldest_goes_when_it_is_too_much() -> None:
    history, random = History(most_bytes=100_000), np.random.default_rng(2)
    for number in range(1, 400):
        header = json.dumps({"number": number}).encode()
        history.add(number, header, {"machine": random.integers(0, 9, 999, np.uint8)})
    assert history.size <= 100_000
    assert history.first is not None
    assert 1 < history.first <= 399
    with pytest.raises(KeyError):
        history.at(history.first - 1)
    assert history.at(399)[0] == {"number": 399}


def test_another_version_is_refused() -> None:
    message = encode({}, {"machine": np.zeros(1, np.uint8)}).replace(
        b'"version": 1', b'"version": 9'
    )
    with pytest.raises(ValueError, match="format version 9"):
        decode(message)
