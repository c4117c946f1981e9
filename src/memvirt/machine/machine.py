# SPDX-License-Identifier: Apache-2.0
"""The machine as people make one: so much memory, written as they write it."""

from __future__ import annotations

from memvirt.address import PAGE_BYTES
from memvirt.size import parse_size

from .memory import MachineMemory


class Machine(MachineMemory):
    """Machine memory of ``memory`` bytes (or text such as "256M"); see MachineMemory."""

    def __init__(self, memory: int | str, *, scatter_seed: int | None = None) -> None:
        size = parse_size(memory, what="machine memory")
        super().__init__(size // PAGE_BYTES, scatter_seed=scatter_seed)
