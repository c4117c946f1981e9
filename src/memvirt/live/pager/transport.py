# SPDX-License-Identifier: Apache-2.0
"""How a VM's userfaultfd reaches the pager: the interface of ``qemu.py`` and ``handoff.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .attachment import Way
from .evictor import Supervision
from .page_states import PageTableFile
from .paged_memory import Region


@dataclass(frozen=True)
class Offer:
    """A userfaultfd: our copy, its number in the VM's process, and whether the VM's process has
    registered its memory (and done UFFDIO_API) itself."""

    ours: int
    theirs: int
    registered: bool


class Transport(Protocol):
    """One VM and the way to its userfaultfd."""

    way: Way
    name: str
    pid: int

    def regions(self) -> tuple[Region, ...]:
        """The memory to page, after checks that nothing collides. Changes nothing."""

    def open(self) -> Offer:
        """Get the descriptor."""

    def close_remote(self, descriptor: int) -> None:
        """Close the VM's own copy, if it is our doing that it has one. After unregistering."""

    def supervision(self, table: PageTableFile) -> Supervision:
        """What the evictor may ask of the VM; called in the evictor's process."""

    def serving(self) -> None:
        """The fault handler runs: tell the VM's process, if it waits for that."""
