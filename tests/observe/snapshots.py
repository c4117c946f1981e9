# SPDX-License-Identifier: Apache-2.0
"""All that ``memvirt map`` does with a snapshot, whoever has made or changed it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from memvirt.address import GuestVirtualAddress
from memvirt.observe.address_map import map_address, render
from memvirt.observe.snapshot import load_snapshot, save_snapshot

from .vms import four_level_vm

ADDRESSES = tuple(
    GuestVirtualAddress(gva)
    for gva in (
        0, 5, 0x1000, 0x40_0000, 0x7FFF_FFFF_F000, (1 << 64) - 4096, 0xFFFF_8000_0000_0000,
    )
)  # fmt: skip


def good_snapshot(path: Path) -> bytes:
    """A snapshot of a small VM, one of whose pages is not resident, written to ``path``."""
    with four_level_vm() as vm:
        vm.vmm.unmap([20])
        save_snapshot(vm, path)
    return path.read_bytes()


def shown_of(path: Path) -> Iterator[str]:
    """What is printed of the snapshot at ``path``, address by address; then some pages are read.

    Raises SnapshotError for one that is refused.
    """
    view = load_snapshot(path)
    for gva in ADDRESSES:
        try:
            yield render(map_address(view, gva))
        except ValueError as error:
            yield str(error)
    for ppn in (0, 10, 20, view.pages - 1):
        view.read_page(ppn)


def is_harmless(text: str) -> bool:
    """True if a terminal only prints ``text``."""
    return all(character.isprintable() or character == "\n" for character in text)
