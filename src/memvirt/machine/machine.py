# SPDX-License-Identifier: Apache-2.0
"""The machine as people make one: so much memory, written as they write it."""

from __future__ import annotations

import contextlib
import os

from memvirt.address import PAGE_BYTES
from memvirt.errors import MemvirtError
from memvirt.size import format_size, parse_size

from .memory import MachineMemory


class MachineTooLarge(MemvirtError):
    """More machine memory than this host can hold; the message has both numbers."""


def _host_bytes() -> int:
    """Memory of the host we run on, with its swap, in bytes."""
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    swap = 0
    with contextlib.suppress(OSError, ValueError), open("/proc/swaps", encoding="ascii") as file:
        swap = sum(int(line.split()[2]) << 10 for line in file.readlines()[1:])
    return page * pages + swap


class Machine(MachineMemory):
    """Machine memory of ``memory`` bytes (or text such as "256M"); see MachineMemory.

    Raises SizeError, and MachineTooLarge for more than the host's memory and swap, before any of it
    is touched, or if the limits of this process leave no room.
    """

    def __init__(self, memory: int | str, *, scatter_seed: int | None = None) -> None:
        size = parse_size(memory, what="machine memory")
        most = _host_bytes()
        if size > most:
            raise MachineTooLarge(
                f"machine memory of {format_size(size)}: this host has {format_size(most)}, swap "
                "included"
            )
        try:
            super().__init__(size // PAGE_BYTES, scatter_seed=scatter_seed)
        except (OSError, MemoryError) as error:
            raise MachineTooLarge(
                f"machine memory of {format_size(size)}: this process cannot have so much now "
                f"({getattr(error, 'strerror', None) or 'out of memory'})"
            ) from error
