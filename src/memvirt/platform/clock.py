# SPDX-License-Identifier: Apache-2.0
"""Words of virtual time, which every device of the PC keeps in nanoseconds."""

NANOSECONDS_PER_SECOND = 1_000_000_000
NEVER = (1 << 63) - 1
"""Deadline in virtual nanoseconds meaning "no event is scheduled"."""
