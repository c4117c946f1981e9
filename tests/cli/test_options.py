# SPDX-License-Identifier: Apache-2.0
"""Every number on a command line has two bounds: what lies outside is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest

from memvirt.cli.main import app


def _numbers() -> Iterator[tuple[str, Any]]:
    for command in app.registered_commands:
        assert command.callback is not None
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            kind, *about = get_args(hint) or (hint,)
            if about and {int, float} & {kind, *get_args(kind)}:
                yield f"{command.name} {name}", about[0]


_NUMBERS = dict(_numbers())


def test_there_are_such_options() -> None:
    assert {"plan draws", "run interval", "map cpu", "boot timeout"} <= _NUMBERS.keys()


@pytest.mark.parametrize("option", _NUMBERS)
def test_it_has_two_bounds(option: str) -> None:
    kind = _NUMBERS[option]
    assert kind.min is not None
    assert kind.max is not None
    assert kind.max <= 2**63 - 1
