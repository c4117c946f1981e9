# SPDX-License-Identifier: Apache-2.0
"""Lines of keys in every notation of TOML: the keys tomllib finds, on the lines as marked."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvirt.scenario.scenario import bundled_scenarios, find_scenario
from memvirt.scenario.toml_lines import Location, line_of, toml_lines

# A key whose value is or starts with N stands on line N.
MARKED = """\
a = 1
"b c".d = 2 # [not] = a table
'e' . f = "3 [[x]] \\" = y"
[ g . h ]
i = '5 = "'
j = { k = 6, l.m = "6 }", n = [ { o = 6 } ] }
[[ p ]]
q = \"\"\"8
r = 9
\\\"\"\" s = 10\"\"\"
t = [
  12, # ] = 12
  [ "13 ]", 13 ],
  { u = 14 },
]
[p.v]
w = 1979-05-27 07:32:17
[[p]]
[[p.x]]
y = '''20
'z' = 21''''
[[p.x]]
y = 23
[p.v]
w = 25
"""


def keys(value: Any, here: Location = ()) -> dict[Location, Any]:
    """Every location of a parsed document with its value."""
    found: dict[Location, Any] = {here: value} if here else {}
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= keys(inner, (*here, key))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            found |= keys(inner, (*here, index))
    return found


def test_every_notation() -> None:
    expected = keys(tomllib.loads(MARKED))
    lines = toml_lines(MARKED)
    assert lines.keys() == expected.keys()
    for location, value in expected.items():
        if isinstance(value, dict | list):
            continue
        number = re.match(r"\d+", str(value))
        marked = value.second if hasattr(value, "second") else int(number[0]) if number else None
        assert lines[location] == marked, location
    assert lines["p", 0] == 7
    assert lines["p", 1, "x", 1] == 22
    assert lines["p", 0, "t"] == 11


def test_what_is_not_there_is_found_at_the_table_above() -> None:
    assert line_of(MARKED, ("p", 1, "x", 0, "gone")) == 19
    assert line_of(MARKED, ("g", "h", "gone")) == 4
    assert line_of(MARKED, ("gone",)) == 1
    assert line_of("", ("gone", 0)) == 1


@pytest.mark.parametrize("name", bundled_scenarios())
def test_the_bundled_scenarios(name: str) -> None:
    text = find_scenario(name).read_text(encoding="utf-8")
    assert toml_lines(text).keys() == keys(tomllib.loads(text)).keys()


_TEXT = st.text("a]}[{=#\",'.\\ \n", max_size=6)
_VALUES = st.recursive(
    st.one_of(st.integers(), st.booleans(), _TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXT, inner, max_size=3)),
    max_leaves=8,
)


def toml(value: Any) -> str:
    """A value in inline notation."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[ # ]\n" + ",\n".join(toml(inner) for inner in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return str(value).lower()


@given(st.dictionaries(_TEXT, _VALUES, max_size=4))
def test_any_document(document: dict[str, Any]) -> None:
    text = "\n\n".join(f"{toml(key)} = {toml(value)}" for key, value in document.items())
    assert tomllib.loads(text) == document
    lines = toml_lines(text)
    assert lines.keys() == keys(document).keys()
    written = text.splitlines()
    for location, line in lines.items():
        if isinstance(location[-1], str):
            assert f"{toml(location[-1])} = " in written[line - 1]
