# SPDX-License-Identifier: Apache-2.0
"""Reservations, told to the kernel: its own reclaim is to spare them when the host is short.

By ``memory.low`` (version 2) or ``memory.soft_limit_in_bytes`` (version 1) of each VM's control
group. In version 2 a group is spared no more than the groups above it are, so those get at least
the sum of the reservations below them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from memvirt.address import PAGE_BYTES

from .cgroup import MemoryCgroup
from .ledger import Ledger


class ReservationProtection:
    """Keeps the kernel's files as the managed VMs need them; the ledger puts them back."""

    def __init__(self, ledger: Ledger | None, note: Callable[[str, str], object]) -> None:
        self._ledger, self._note = ledger, note
        self._set: dict[Path, int] = {}

    def update(self, groups: Mapping[str, tuple[MemoryCgroup, int]]) -> None:
        """The groups of the VMs that are managed now, by VM, each with its reservation in pages.

        Files no VM needs any more are put back. What the kernel refuses is an event.
        """
        if self._ledger is None:
            return
        own: dict[Path, tuple[str, int]] = {}
        above: dict[Path, int] = {}
        for name, (group, reservation) in groups.items():
            if reservation > 0:
                own[group.protection] = name, reservation * PAGE_BYTES
                for file in group.bounding_protections():
                    above[file] = above.get(file, 0) + reservation * PAGE_BYTES
        for file in set(self._set) - set(own) - set(above):
            del self._set[file]
            self._put_back(file, self._ledger)
        for file, wanted in above.items():
            if file not in own:
                self._write(file, "", wanted, self._ledger, "the reservations below it")
        for file, (name, wanted) in own.items():
            self._write(file, name, wanted, self._ledger, "its reservation")

    def _write(self, file: Path, name: str, wanted: int, ledger: Ledger, what: str) -> None:
        if self._set.get(file) == wanted:
            return
        try:
            before = ledger.before(file)
            if not name and (before == "max" or int(before) >= wanted):
                # Somebody has given the group above as much already.
                if self._set.pop(file, None) is not None:
                    self._put_back(file, ledger)
                return
            ledger.change_setting(file, str(wanted))
        except (OSError, ValueError) as error:
            self._note(name, f"its reservation is not known to the kernel: {error}")
            return
        self._set[file] = wanted
        self._note(name, f"{file}: {wanted}, {what}")

    def _put_back(self, file: Path, ledger: Ledger) -> None:
        if str(file) not in ledger.record.settings:
            return
        try:
            ledger.put_back(file)
        except OSError as error:
            self._note("", f"{file}: cannot be set back: {error.strerror}")
