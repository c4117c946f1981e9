# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition: no test waits for time to pass."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], what: str, seconds: float = 180.0) -> None:
    """Wait until ``condition()`` is true; fails with ``what`` if that takes beyond ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
