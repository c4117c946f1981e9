# SPDX-License-Identifier: Apache-2.0
"""What the documents name is there: files, and what is said to be in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("src", "tests", "docs", "engine", "examples", "bench", "guests")
# `file.py`, `folder/file.py: name` or `file.py: name, other`
NAMED = re.compile(r"`([\w/-]+\.(?:py|sh|svg)|[\w/-]+/[\w-]+\.md)(?::\s+([\w, ]+))?`")


def missing(text: str, files: Iterable[Path]) -> list[str]:
    """What ``text`` names that is in none of ``files``."""
    lost = []
    for name, members in NAMED.findall(text):
        found = [path for path in files if f"/{path.as_posix()}".endswith(f"/{name}")]
        sources = [path.read_text(encoding="utf-8") for path in found]
        if not found:
            lost.append(name)
        lost += [
            f"{name}: {member}"
            for member in re.findall(r"\w+", members)
            if found and not any(re.search(rf"\b{member}\b", source) for source in sources)
        ]
    return lost


def test_documents_name_what_there_is() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    lost = {document.name: missing(document.read_text(), files) for document in DOCUMENTS}
    assert {name: what for name, what in lost.items() if what} == {}


def test_a_wrong_name_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("def loop(): ...")
    text = "`run.py: loop`, `run.py: jump`, `cpu/run.py`, `run.py`"
    assert missing(text, [tmp_path / "run.py"]) == ["run.py: jump", "cpu/run.py"]
