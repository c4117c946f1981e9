# SPDX-License-Identifier: Apache-2.0
"""One input: files and options. In a folder it is ``case.json`` with the files beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_DESCRIPTION = "case.json"


@dataclass(frozen=True)
class Case:
    """``options`` says how its files are used; only the kind's runner knows what that means."""

    kind: str
    files: dict[str, bytes] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it to ``folder``, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        description = {"kind": self.kind, "options": self.options, "files": sorted(self.files)}
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Case:
        """What ``save`` wrote."""
        description = json.loads((folder / _DESCRIPTION).read_text())
        files = {name: (folder / name).read_bytes() for name in description["files"]}
        return cls(description["kind"], files, description["options"])


@dataclass(frozen=True)
class Verdict:
    """What came of a case. ``good``: as promised. ``outcome`` is what it is counted under."""

    good: bool
    outcome: str
    detail: str = ""
    slowest: float = 0.0  # CPU seconds of the host in the slowest quantum, of guests


def one_line(text: str) -> bool:
    """True if ``text`` is a message as promised: one line, nothing that a terminal obeys."""
    return bool(text) and text.isprintable() and len(text) < 4000
