# SPDX-License-Identifier: Apache-2.0
"""Raw dumps: guest memory from address 0 on, as QEMU's ``pmemsave`` or a memory file has it."""

from __future__ import annotations

from pathlib import Path

from memvirt.address import PAGE_BYTES, PhysicalPageNumber

from .dump import DumpError, Extent, FileDump


def open_raw(path: Path) -> FileDump:
    """Raises DumpError for a file that is not whole pages."""
    size = path.stat().st_size
    if size == 0 or size % PAGE_BYTES:
        raise DumpError(
            f"{path}: is no dump in a known format, and no raw one: its {size:,} bytes are not "
            "whole 4 KiB pages"
        )
    return FileDump(path, "raw", [Extent(PhysicalPageNumber(0), size // PAGE_BYTES, 0)])
