# SPDX-License-Identifier: Apache-2.0
"""The Linux test guest, made from Debian's packages once for the tests that need it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

_ROOT = Path(__file__).parents[2]


class LinuxGuest(NamedTuple):
    """Paths of a kernel and an initramfs."""

    kernel: Path
    initrd: Path


@pytest.fixture(scope="session")
def linux_guest() -> LinuxGuest:
    """What ``make linux-guest`` makes; packages already fetched are not fetched again."""
    build = _ROOT / "build" / "linux-guest"
    script = _ROOT / "guests" / "linux" / "build.sh"
    done = subprocess.run([script, build], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return LinuxGuest(build / "vmlinuz", build / "initrd.img")
