# SPDX-License-Identifier: Apache-2.0
"""The type checker keeps the three address spaces apart: each deliberate mix is rejected.

``address_mixes`` is checked once, with the project's own settings. A mix that passes means a
surface has lost its types; an error on a line without a mark means the file itself is wrong.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from mypy import api

ROOT = Path(__file__).parents[2]
MIXES = Path(__file__).with_name("address_mixes.py")
_MARK = re.compile(r"#\s*mix(?::\s*(?P<code>[\w-]+))?\s*$")
_ERROR = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: (?P<text>.*?)  \[(?P<code>[\w-]+)\]$")


class Complaint(NamedTuple):
    """One error of mypy's."""

    line: int
    code: str
    text: str


def marks(source: str) -> dict[int, str | None]:
    """Line numbers of mixes, with the code of the error each must be (None: any)."""
    found = {}
    for number, line in enumerate(source.splitlines(), 1):
        if mark := _MARK.search(line):
            found[number] = mark["code"]
    return found


def complaints(path: Path) -> list[Complaint]:
    """What mypy says of a file, with the project's settings."""
    output, crash, status = api.run(
        [
            "--config-file", str(ROOT / "pyproject.toml"),
            "--no-error-summary", "--show-error-codes", "--no-color-output", "--hide-error-context",
            "--no-pretty", str(path),
        ]
    )  # fmt: skip
    assert not crash, crash
    assert status in (0, 1), output
    found = []
    for line in output.splitlines():
        error = _ERROR.match(line)
        if error and Path(error["file"]).name == path.name:
            found.append(Complaint(int(error["line"]), error["code"], error["text"]))
    assert bool(found) == (status == 1), output
    return found


def judge(source: str, found: list[Complaint]) -> list[str]:
    """What is wrong: mixes that pass, and errors where no mix is."""
    lines, expected, wrong = source.splitlines(), marks(source), []
    for number, code in expected.items():
        here = [each for each in found if each.line == number]
        if not here:
            wrong.append(f"line {number} is not rejected: {lines[number - 1].strip()}")
        elif code is not None and all(each.code != code for each in here):
            wrong.append(f"line {number} is rejected for another reason: {here[0].text}")
    for each in found:
        if each.line not in expected:
            wrong.append(f"line {each.line} is no mix and is rejected: {each.text}")
    return wrong


def test_every_mix_of_address_spaces_is_rejected() -> None:
    source = MIXES.read_text()
    assert len(marks(source)) >= 20
    assert judge(source, complaints(MIXES)) == []


@pytest.mark.parametrize(
    ("source", "found", "wrong"),
    [
        ("f(a)  # mix\n", [], "line 1 is not rejected: f(a)  # mix"),
        ("f(a)\n", [Complaint(1, "arg-type", "bad")], "line 1 is no mix and is rejected: bad"),
        (
            "f(a)  # mix: arg-type\n",
            [Complaint(1, "name-defined", "no f")],
            "line 1 is rejected for another reason: no f",
        ),
    ],
)
def test_the_judge_can_find_fault(source: str, found: list[Complaint], wrong: str) -> None:
    assert judge(source, found) == [wrong]
