# SPDX-License-Identifier: Apache-2.0
"""Measurements that nobody measured: read with warnings, or refused in one line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from memvirt.plan.findings import PlanDataError
from memvirt.plan.fleet import Fleet, assemble
from memvirt.plan.readers.detect import read_files
from tests.fuzz.files import MEASUREMENTS
from tests.fuzz.mutations import change_text


def read(path: Path, content: bytes) -> Fleet | None:
    """The fleet in ``content``; None if it is refused in one line."""
    path.write_bytes(content)
    try:
        fleet = assemble(read_files([path]))
    except PlanDataError as error:
        assert str(error).isprintable()
        return None
    for finding in fleet.findings:
        assert str(finding).isprintable()
    return fleet


@pytest.mark.parametrize("number", ["1e400", "inf", "-inf", "nan", "9" * 400, "9" * 5000])
@pytest.mark.parametrize("column", ["memory_mib", "in_use_mib", "time", "shares", "limit_mib"])
def test_a_number_that_is_none(column: str, number: str, tmp_path: Path) -> None:
    row = {"vm": "a", "time": "0", "memory_mib": "1024"} | {column: number}
    text = f"{','.join(row)}\n{','.join(row.values())}\n"
    fleet = read(tmp_path / "f.csv", text.encode())
    assert fleet is None or fleet.findings


@pytest.mark.parametrize(
    "content",
    [b"vm,memory_mib\ra,1\r", b"\r", b"x" * 200_000, b"sep=;", b"\xff\xfe\x00", b"\xff\xfevm\xd8"],
)
def test_a_text_that_is_no_table(content: bytes, tmp_path: Path) -> None:
    assert read(tmp_path / "f.csv", content) is None


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_no_change_is_more_than_a_refusal(name: str, tmp_path: Path) -> None:
    draw = random.Random(name)
    for _ in range(60):
        read(tmp_path / name, change_text(draw, MEASUREMENTS[name]))
