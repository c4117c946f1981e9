# SPDX-License-Identifier: Apache-2.0
"""Admission control: what a VM is promised must be there before it powers on.

Two promises (vSphere Resource Management, "Admission control" and "Swap space"): its reservation
and overhead in machine memory, and swap for all that is not reserved, so that the host can always
take memory above the reservations back.
"""

from __future__ import annotations

from dataclasses import dataclass

from memvirt.address import PAGE_BYTES
from memvirt.size import format_size


class AdmissionError(Exception):
    """A VM cannot be powered on; the message has the numbers."""


@dataclass(frozen=True, slots=True)
class VmSettings:
    """What a user grants a VM. Amounts are in pages; ``shares`` are for the whole VM."""

    name: str
    memory: int
    shares: int
    reservation: int = 0
    limit: int | None = None
    group: str = ""

    @property
    def maximum(self) -> int:
        """Most machine memory it may have: the limit, or its memory."""
        return self.memory if self.limit is None else min(self.limit, self.memory)

    @property
    def swap(self) -> int:
        """Swap it needs."""
        return self.memory - self.reservation


@dataclass
class Admission:
    """Unreserved machine memory and swap of a host, in pages. ``swap`` None: not bounded."""

    memory: int
    swap: int | None
    reserved: int = 0
    swap_reserved: int = 0

    @property
    def unreserved(self) -> int:
        return self.memory - self.reserved

    def admit(self, settings: VmSettings, overhead: int) -> None:
        """Reserve what the VM needs. Raises AdmissionError, with nothing reserved."""
        needed = settings.reservation + overhead
        if needed > self.unreserved:
            raise AdmissionError(
                f"VM {settings.name} cannot be powered on: it needs {_size(needed)} of machine "
                f"memory (reservation {_size(settings.reservation)} and overhead "
                f"{_size(overhead)}), but {_size(self.unreserved)} of {_size(self.memory)} "
                "are unreserved"
            )
        if self.swap is not None and settings.swap > self.swap - self.swap_reserved:
            raise AdmissionError(
                f"VM {settings.name} cannot be powered on: it needs {_size(settings.swap)} of "
                f"swap (memory {_size(settings.memory)} less reservation "
                f"{_size(settings.reservation)}), but {_size(self.swap - self.swap_reserved)} of "
                f"{_size(self.swap)} are left"
            )
        self.reserved += needed
        self.swap_reserved += settings.swap

    def leave(self, settings: VmSettings, overhead: int) -> None:
        """Give back what ``admit`` reserved."""
        self.reserved -= settings.reservation + overhead
        self.swap_reserved -= settings.swap


def _size(pages: int) -> str:
    return format_size(pages * PAGE_BYTES)
