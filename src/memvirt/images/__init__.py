# SPDX-License-Identifier: Apache-2.0
"""The guest images that come with memvirt; their sources are in ``guests/`` of the repository."""

from __future__ import annotations

from pathlib import Path

__all__ = ["image_path"]

BUNDLED = "bundled"
_NAMES = {BUNDLED: "memvirt-guest.elf", "multiboot32": "multiboot32.elf"}


def image_path(name: str) -> Path:
    """A bundled image by its name ("bundled", "multiboot32"), or else ``name`` as a path."""
    if name in _NAMES:
        return Path(__file__).with_name(_NAMES[name])
    return Path(name)
