# SPDX-License-Identifier: Apache-2.0
"""The ways to translate guest virtual addresses, by name."""

from __future__ import annotations

from enum import IntEnum


class PagingMode(IntEnum):
    """How the processor translates guest virtual addresses."""

    SHADOW = 0
    NESTED = 1
    FLAT = 2  # no virtualization: the processor's own MMU, for comparison


# As compiled kernels compare them.
PAGING_SHADOW, PAGING_NESTED, PAGING_FLAT = (int(mode) for mode in PagingMode)
