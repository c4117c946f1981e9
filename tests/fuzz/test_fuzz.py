# SPDX-License-Identifier: Apache-2.0
"""A short run of the fuzzer, always the same; and that it finds what is there to be found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import kinds
from .campaign import Campaign, Worker
from .case import Case, Verdict
from .names import KIND_NAMES

_CASES = 4  # of each kind


def test_the_names_are_those_of_the_kinds() -> None:
    assert tuple(kinds.KINDS) == KIND_NAMES


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_seed_gives_the_same_case_again(kind: str, tmp_path: Path) -> None:
    case = kinds.make(kind, "1-5")
    assert kinds.make(kind, "1-5") == case
    case.save(tmp_path / "case")
    assert Case.load(tmp_path / "case") == case


@pytest.mark.timeout(3000)
def test_a_short_run(tmp_path: Path) -> None:
    campaign = Campaign(KIND_NAMES, seed=3, cases=_CASES, keep=tmp_path)
    good = campaign.run()
    assert good, "\n".join([campaign.table(), *(p.read_text() for p in tmp_path.glob("*/*.txt"))])
    assert campaign.counts.total() == _CASES * len(KIND_NAMES)


def test_a_failure_is_kept_and_can_be_run_again(tmp_path: Path) -> None:
    """A case of no kind: whoever runs it fails."""
    case = Case("nothing", {"file": b"x"}, {"a": 1})
    case.save(tmp_path / "case")
    campaign = Campaign(("nothing",), seed=1, keep=tmp_path / "kept")
    with Worker(tmp_path / "log") as worker:
        verdict = worker.do({"folder": str(tmp_path / "case")})
        assert not verdict.good
        assert "KeyError" in verdict.outcome
        campaign.note("nothing", "1-0", verdict, tmp_path / "case")
        (kept,) = campaign.kept
        assert Case.load(kept) == case
        assert f"--again {kept}" in (kept / "verdict.txt").read_text()
        assert worker.do({"folder": str(kept)}).outcome == verdict.outcome
    assert campaign.failures == 1
    assert "FAILURE: an exception: KeyError" in campaign.table()


def test_the_death_of_the_process_is_an_outcome(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Worker(log) as worker:
        verdict = worker.do({"folder": str(tmp_path / "none")})  # there is no such case
        assert verdict.outcome == "no case: FileNotFoundError"
        worker.kill()
        dead = worker.do({"folder": str(tmp_path / "none")})
        assert not dead.good
        assert dead.outcome == "the process dies: SIGKILL"
        assert worker.do({"folder": str(tmp_path / "none")}) == verdict  # a new one has started


def test_a_verdict_is_a_line_of_json() -> None:
    verdict = Verdict(False, "an outcome", "two\nlines", 0.5)
    assert Verdict(**json.loads(json.dumps(verdict.__dict__))) == verdict
