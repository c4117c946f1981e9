# SPDX-License-Identifier: Apache-2.0
"""The README's Python example runs, and its pages exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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
