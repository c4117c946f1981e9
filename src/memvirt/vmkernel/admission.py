# SPDX-License-Identifier: Apache-2.0
"""Admission control: what a VM is promised must be there before it powers on.

Two promises (vSphere Resource Management, "Admission control" and "Swap space"): its reservation
and overhead in machine memory, and swap for all that is not reserved, so that the host can always
take memory above the reservations back.
"""

from __future__ import annotations

from dataclasses import dataclass

from memvirt.address import PAGE_BYTES
from memvirt.errors import MemvirtError
from memvirt.size import format_size

__all__ = ["AdmissionError", "VmSettings"]


class AdmissionError(MemvirtError):
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

    def check(self) -> None:
        """Raise ValueError if the amounts cannot go together."""
        if self.shares < 1:
            raise ValueError(f"VM {self.name}: {self.shares} shares: it should be at least 1")
        if not 0 <= self.reservation <= self.maximum:
            raise ValueError(
                f"VM {self.name}: a reservation of {self.reservation} pages: it should be 0 to "
                f"{self.maximum}, the VM's limit or memory"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"VM {self.name}: a limit of {self.limit} pages: at least 1")


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

    def change(self, old: VmSettings, new: VmSettings, swap_reserved: int) -> int:
        """Reserve for ``new`` settings of a VM with ``old`` ones and ``swap_reserved`` swap pages.

        Returns the pages of swap reserved for it from now on: never fewer, since its swap file
        does not shrink. Raises AdmissionError, with nothing changed.
        """
        more = new.reservation - old.reservation
        if more > self.unreserved:
            raise AdmissionError(
                f"VM {new.name} cannot have a reservation of {_size(new.reservation)}: "
                f"{_size(more)} more are needed, but {_size(self.unreserved)} of "
                f"{_size(self.memory)} are unreserved"
            )
        swap = max(new.swap - swap_reserved, 0)
        if self.swap is not None and swap > self.swap - self.swap_reserved:
            raise AdmissionError(
                f"VM {new.name} cannot have a reservation of {_size(new.reservation)}: "
                f"{_size(swap)} more of swap are needed, but "
                f"{_size(self.swap - self.swap_reserved)} of {_size(self.swap)} are left"
            )
        self.reserved += more
        self.swap_reserved += swap
        return swap_reserved + swap

    def leave(self, settings: VmSettings, overhead: int, swap_reserved: int | None = None) -> None:
        """Give back what ``admit`` reserved; ``swap_reserved`` is what ``change`` made of it."""
        self.reserved -= settings.reservation + overhead
        self.swap_reserved -= settings.swap if swap_reserved is None else swap_reserved


def _size(pages: int) -> str:
    return format_size(pages * PAGE_BYTES)
