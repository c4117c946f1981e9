# SPDX-License-Identifier: Apache-2.0
"""Swap in a zram device that is made for a while and gone afterwards, whatever happens between."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from memvirt.live.host_memory import read_host_pages

_CONTROL = Path("/sys/class/zram-control")


class NoZram(Exception):
    """This host has no zram, or has swap that would be in the way; the message says which."""


def _tool(name: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin")
    if path is None:
        raise NoZram(f"{name} is not installed")
    return path


@contextlib.contextmanager
def zram_swap(size: str) -> Iterator[int]:
    """Swap of ``size`` ("512M"), all the host has; yields its pages. Raises NoZram. Needs root."""
    if not (_CONTROL / "hot_add").exists():
        raise NoZram("this kernel has no zram")
    if read_host_pages().swap_total:
        raise NoZram("this host has swap already: what is sent there could stay")
    tools = {name: _tool(name) for name in ("mkswap", "swapon", "swapoff")}
    number = (_CONTROL / "hot_add").read_text().strip()
    device, knobs = Path(f"/dev/zram{number}"), Path(f"/sys/block/zram{number}")
    made = not device.exists()
    try:
        if made:  # no udev here
            major, minor = (knobs / "dev").read_text().strip().split(":")
            os.mknod(device, 0o60600, os.makedev(int(major), int(minor)))
        (knobs / "disksize").write_text(size)
        subprocess.run([tools["mkswap"], device], check=True, capture_output=True)
        subprocess.run([tools["swapon"], device], check=True)
        try:
            yield read_host_pages().swap_total
        finally:
            subprocess.run([tools["swapoff"], device], check=True)
    finally:
        with contextlib.suppress(OSError):
            (knobs / "reset").write_text("1")
        (_CONTROL / "hot_remove").write_text(number)
        if made:
            device.unlink(missing_ok=True)
