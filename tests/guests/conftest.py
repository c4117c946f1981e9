# SPDX-License-Identifier: Apache-2.0
"""The Linux test guest, made from Debian's packages once for the tests that need it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

_ROOT = Path(__file__).parents[2]


class LinuxGuest(NamedTuple):
    """Paths of a kernel and an initramfs."""

    kernel: Path
    initrd: Path

    @property
    def has_32_bit_programs(self) -> bool:
        """True if the packages of i386 were within reach when it was built."""
        return (self.initrd.parent / "has-32-bit-programs").exists()


def build_linux_guest(**choice: str) -> LinuxGuest:
    """What ``make linux-guest`` makes with these variables (KERNEL, FLAVOUR).

    Packages already fetched are not fetched again. Raises CalledProcessError.
    """
    kind = "-".join(("linux-guest", *choice.values()))
    build = _ROOT / "build" / kind
    script = _ROOT / "guests" / "linux" / "build.sh"
    subprocess.run(
        [script, build], capture_output=True, text=True, check=True, env=os.environ | choice
    )
    return LinuxGuest(build / "vmlinuz", build / "initrd.img")


def linux_guest_or_skip(**choice: str) -> LinuxGuest:
    """``build_linux_guest``, or a skipped test where apt does not reach such packages."""
    try:
        return build_linux_guest(**choice)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no such kernel within reach: {error.stderr[-300:]}")


@pytest.fixture(scope="session")
def linux_guest() -> LinuxGuest:
    """The kernel of this release of Debian."""
    return build_linux_guest()


@pytest.fixture(scope="session")
def newer_linux_guest() -> LinuxGuest:
    """Linux 6.12 from Debian's backports, cloud flavour."""
    return linux_guest_or_skip(KERNEL="6.12")
