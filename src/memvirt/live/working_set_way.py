# SPDX-License-Identifier: Apache-2.0
"""The names of the ways to measure a working set (``working_set``), for options and scenarios."""

from __future__ import annotations

from enum import StrEnum

DEFAULT_PERIOD_SECONDS = 20.0


class WorkingSetWay(StrEnum):
    """The ways to measure a working set."""

    AUTO = "auto"
    DAMON = "damon"
    IDLE = "idle"
    CLEAR_REFS = "clear-refs"
    OFF = "off"
