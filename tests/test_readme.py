# SPDX-License-Identifier: Apache-2.0
"""The README's Python example runs, its commands print its transcripts, its pages exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.engine.own_build import own_build_only

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
sys.path.insert(0, str(ROOT / "docs"))

from transcripts import Transcript, agree, run, transcripts  # noqa: E402

TRANSCRIPTS = list(transcripts(README))


def test_the_python_example(capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    exec(compile(example[1], "README.md", "exec"), {})
    state, back = capsys.readouterr().out.split("\n")[:2]
    assert state in ("private", "swapped")
    assert int(back.split()[0]) > 0


@pytest.mark.parametrize("link", re.findall(r"\]\((docs/[^)]+)\)", README))
def test_links(link: str) -> None:
    assert (ROOT / link).is_file()


@own_build_only
@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda transcript: transcript.command)
def test_transcripts(transcript: Transcript) -> None:
    printed = run(transcript.command)
    assert agree(transcript.output, printed), f"`make docs` writes it anew:\n{printed}"


def test_the_transcripts_are_found() -> None:
    assert len(TRANSCRIPTS) >= 2


def test_a_transcript_that_differs_is_noticed() -> None:
    said = "3 VMs; 0.97 s virtual, 5.5 s wall\n...\nend\n"
    assert agree(said, "3 VMs; 0.97 s virtual, 9.1 s wall\nmore\nand more\nend\n")
    assert not agree(said, "3 VMs; 0.98 s virtual, 5.5 s wall\nend\n")
    assert not agree(said, "3 VMs; 0.97 s virtual, 5.5 s wall\nmore\n")
