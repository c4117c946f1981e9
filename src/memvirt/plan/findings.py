# SPDX-License-Identifier: Apache-2.0
"""What a reader noticed in somebody's data: one line each, so that nothing is silently dropped."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from memvirt.errors import MemvirtError
from memvirt.notebook import one_line

_MOST_SHOWN = 1000  # characters; names and cells may come from anywhere


class Severity(StrEnum):
    """How a finding bears on the answer."""

    NOTE = "note"  # a choice that was made; the answer is as good as the data
    WARNING = "warning"  # data left out or changed; the answer may be off


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing noticed. ``where`` names the file, with sheet, row or column where it has one."""

    severity: Severity
    where: str
    what: str

    def __str__(self) -> str:
        return one_line(f"{self.severity}: {self.where}: {self.what}", _MOST_SHOWN)


class PlanDataError(MemvirtError):
    """Data that cannot be used; the message is one line that says where and what would be right."""


class Findings:
    """Collects findings of one file, in ``found`` if given; ``path`` heads them."""

    def __init__(self, path: object, found: list[Finding] | None = None) -> None:
        self.path = str(path)
        self.list: list[Finding] = [] if found is None else found

    def note(self, what: str, where: str = "") -> None:
        self.list.append(Finding(Severity.NOTE, self._where(where), what))

    def warn(self, what: str, where: str = "") -> None:
        self.list.append(Finding(Severity.WARNING, self._where(where), what))

    def error(self, what: str, where: str = "") -> PlanDataError:
        """The exception to raise for what makes the file unusable."""
        return PlanDataError(one_line(f"{self._where(where)}: {what}", _MOST_SHOWN))

    def _where(self, where: str) -> str:
        return f"{self.path}, {where}" if where else self.path


def name_some(names: list[str], most: int = 5) -> str:
    """The first few of many names, and how many more there are."""
    shown = one_line(", ".join(names[:most]), _MOST_SHOWN)
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
