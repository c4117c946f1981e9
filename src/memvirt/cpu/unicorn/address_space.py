# SPDX-License-Identifier: Apache-2.0
"""Address space for an engine: asked for before, because the engine ends the process without."""

from __future__ import annotations

import resource
from pathlib import Path

from memvirt.cpu.processor import ProcessorError

# Measured: an engine reserves 1,025 MiB, nearly all of it for translated code; then the kernels.
ENGINE_BYTES = 1 << 30 | 256 << 20


def check_address_space(needed: int = ENGINE_BYTES) -> None:
    """Raise ProcessorError if the limit of this process leaves less than ``needed`` bytes."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if limit - used < needed:
        raise ProcessorError(
            f"a processor needs {needed >> 20} MiB of address space; the limit of this process "
            f"(ulimit -v) is {limit >> 20} MiB and {used >> 20} MiB are in use"
        )
