# SPDX-License-Identifier: Apache-2.0
"""What QEMU answers is an allegation: the process may be one that somebody has taken over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from memvirt.notebook import one_line

from .errors import MonitorError

if TYPE_CHECKING:
    from .qmp import Monitor

_NOT_AS_EXPECTED = (
    KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError,
)  # fmt: skip


@contextlib.contextmanager
def understood(name: str) -> Iterator[None]:
    """Take an answer of VM ``name`` apart in the block; MonitorError if it is not as expected."""
    try:
        yield
    except _NOT_AS_EXPECTED as error:
        what = one_line(f"{type(error).__name__}: {error}")
        raise MonitorError(f"{name}: an answer of QEMU cannot be understood ({what})") from error


def run_state(monitor: Monitor) -> str:
    """QEMU's run state, such as "running". Raises MonitorError."""
    with understood(monitor.name):
        return str(monitor.execute("query-status")["status"])


def balloon_bytes(monitor: Monitor) -> int:
    """Memory that the balloon leaves the guest. Raises MonitorError; CommandError without one."""
    with understood(monitor.name):
        return int(monitor.execute("query-balloon")["actual"])
