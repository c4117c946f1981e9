# SPDX-License-Identifier: Apache-2.0
"""The guest walk for callers outside of compiled code who look at tables and change nothing."""

from __future__ import annotations

from numba import njit

from .control import CONTROL_RECORD
from .guest_walk import guest_walk
from .native import record_reference

_control = record_reference(CONTROL_RECORD)


@njit(nogil=True, cache=True)
def inspect_walk(control_at: int, gva: int, access: int) -> int:
    """``guest_walk`` without accessed and dirty updates, on the control block at ``control_at``.

    ``gva`` is a signed word. The results are in the control block.
    """
    return int(guest_walk(_control(control_at), gva, access, False))
