# SPDX-License-Identifier: Apache-2.0
"""KSM, the host's page sharing: what it is set to and what it has done. Reads only.

Source: Documentation/admin-guide/mm/ksm.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .ram import RamBlock

KSM_DIRECTORY = Path("/sys/kernel/mm/ksm")
DEFAULT_MOST_SHARERS = 256


@dataclass(frozen=True, slots=True)
class KsmStatus:
    """The host's KSM. Quantities are 4 KiB pages."""

    running: bool
    most_sharers: int  # max_page_sharing: pages merged into one frame, at most
    use_zero_pages: bool
    frames: int  # pages_shared: frames in use
    sharing: int  # pages_sharing: pages beyond those, that is frames saved
    zero_pages: int  # ksm_zero_pages: pages merged into the page of zeroes
    full_scans: int
    pages_per_second: float  # the scanner's set rate


def ksm_status(directory: Path = KSM_DIRECTORY) -> KsmStatus | None:
    """KSM now, or None if this kernel has none (CONFIG_KSM)."""

    def number(name: str, default: int = 0) -> int:
        try:
            return int((directory / name).read_text())
        except (OSError, ValueError):
            return default

    if not (directory / "run").exists():
        return None
    sleep = max(number("sleep_millisecs", 20), 1)
    return KsmStatus(
        running=number("run") == 1,
        most_sharers=number("max_page_sharing", DEFAULT_MOST_SHARERS),
        use_zero_pages=bool(number("use_zero_pages")),
        frames=number("pages_shared"),
        sharing=number("pages_sharing"),
        zero_pages=number("ksm_zero_pages"),
        full_scans=number("full_scans"),
        pages_per_second=number("pages_to_scan", 100) * 1000 / sleep,
    )


def why_not_merged(block: RamBlock) -> str:
    """Why KSM finds nothing in a block of RAM; "" if it would look there."""
    if block.shared:
        return (
            f"{block.name} is shared memory ({block.backing.value}): KSM merges private pages only"
        )
    if not block.merge:
        return f"{block.name}: QEMU was started with mem-merge=off (or merge=off for this backend)"
    if not block.ksm_can_merge:
        return f"{block.name} is {block.backing.value} memory: KSM merges anonymous pages only"
    return ""
