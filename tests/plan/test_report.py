# SPDX-License-Identifier: Apache-2.0
"""Tables and axes of the reports."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvirt.plan.executor import InProcess
from memvirt.plan.generate import generate
from memvirt.plan.planner import answer
from memvirt.plan.question import Question
from memvirt.plan.report_html import _time_labels, table

ANSWER = answer(generate(1, days=0.02), Question(host_memory=1 << 20), InProcess(), lambda *_: None)


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("12", True), ("-", True), ("4,218.9 MiB", True), ("3.0 GiB to 12.5 GiB", True),
        ("0% of draws", True), ("0.2 to 7.5 (88%)", True), ("-3.5 KiB", True),
        ("soft", False), ("12 hosts", False), ("6.1.0-56-cloud-amd64", False), ("", False),
    ],
)  # fmt: skip
def test_columns_of_numbers_end_at_the_right(cell: str, number: bool) -> None:
    assert ('class="n"' in table(("name", "x"), [("a", cell), ("b", "1")])) == number


@given(st.floats(1e-3, 3000), st.integers(2, 5000), st.booleans(), st.integers(0, 10**6))
def test_labels_are_few_round_and_in_order(
    interval: float, points: int, dated: bool, offset: int
) -> None:
    start = datetime(2024, 3, 4, tzinfo=UTC).timestamp() + offset if dated else 0.0
    labels = _time_labels(replace(ANSWER, start=start, interval_s=interval), [0, points - 1])
    places = [place for place, _ in labels]
    assert len(places) <= 9
    assert places == sorted(places)
    assert all(-1e-3 <= place <= points - 1 + 1e-3 for place in places)
    assert len({text for _, text in labels}) == len(labels)
