# SPDX-License-Identifier: Apache-2.0
"""What the guest uses its pages for, as far as its own page tables and VMCOREINFO tell."""

from __future__ import annotations

from dataclasses import dataclass

from memvirt.plan.dumps.dump import Dump


@dataclass(frozen=True, slots=True)
class GuestPages:
    """Pages by use; what the guest's data do not tell is None."""

    system: str
    page_tables: int
    free: int | None = None
    page_cache: int | None = None
    anonymous: int | None = None


def guest_pages(dump: Dump) -> GuestPages | None:
    """None if nothing can be said of the guest."""
    return None
