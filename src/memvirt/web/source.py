# SPDX-License-Identifier: Apache-2.0
"""What the page shows, whatever it comes from: a running host, one VM, or a record.

The server's thread asks, the source's own thread answers: only that one ever touches a VM, between
two rounds. ``latest`` is a finished, immutable frame that anybody may read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from memvirt.errors import MemvirtError

from .wire import Parts


class SourceError(MemvirtError):
    """A question or a command that cannot be met; the message is for the user."""


class NothingToSay(SourceError):
    """A question that is right, and has no answer now: a VM that has ended, a moment not kept."""


@dataclass(frozen=True)
class Frame:
    """One moment. ``number`` counts frames, ``header`` is JSON, ``parts`` the page classes.

    ``consoles`` has the end of each VM's console: where it starts in all it wrote, and the bytes.
    """

    number: int
    header: dict[str, Any]
    parts: Parts
    consoles: dict[int, tuple[int, bytes]] = field(default_factory=dict)

    @cached_property
    def text(self) -> bytes:
        """The header as JSON."""
        return json.dumps(self.header).encode()


class Source(Protocol):
    """See the module docstring. ``ask`` may be called from any thread."""

    @property
    def latest(self) -> Frame | None: ...

    def hello(self) -> dict[str, Any]:
        """What does not change: names of classes, columns, what can be done."""
        ...

    def watch(self, viewers: int, activity: int = 0) -> None:
        """So many pages are open, and so many of them show activity.

        Without any, nothing is captured; without one that shows it, no activity is observed.
        """
        ...

    def events_since(self, position: int) -> list[dict[str, Any]]:
        """Events from ``position`` on, each with its own as ``number``. From any thread."""
        ...

    def ask(self, question: Callable[[], Any]) -> Future[Any]:
        """Run ``question`` in the source's thread, between two rounds."""
        ...

    def close(self) -> None: ...
