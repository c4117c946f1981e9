# SPDX-License-Identifier: Apache-2.0
"""Machine memory that the host cannot hold is refused before any of it is touched."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from memvirt.machine.machine import Machine, MachineTooLarge


@pytest.mark.parametrize("memory", ["1024T", "8192T", 1 << 60])
def test_more_than_the_host_has_is_refused(memory: str | int) -> None:
    with pytest.raises(MachineTooLarge, match=r"TiB: this host has .* swap included"):
        Machine(memory)


def test_more_than_the_limits_of_this_process_leave_is_refused() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), hard))
    try:
        with pytest.raises(MachineTooLarge, match="cannot have so much now"):
            Machine("256M")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
