# SPDX-License-Identifier: Apache-2.0
"""Taking memory from a VM through its control group: the kernel chooses the pages.

It is the lever for what advice on single pages leaves: merged pages, pages of QEMU itself, its page
cache. How many pages are taken is ours to say, which ones the kernel's to choose (the coldest of
its lists).

- Version 2: ``memory.reclaim`` (Linux 5.19) takes a number of bytes and is done when it returns.
- Version 1 has no such file. Its ``memory.force_empty`` takes all, below any reservation, and is
  not used. Its limit, set below what is in use, makes the kernel reclaim the difference before the
  write returns; then the limit is put back at once. If that cannot be done the limit stays.

Sources: Linux Documentation, admin-guide/cgroup-v2.rst ("memory.reclaim") and
admin-guide/cgroup-v1/memory.rst (5.1 force_empty, limit_in_bytes).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from memvirt.address import PAGE_BYTES
from memvirt.live.discovery import runs_qemu
from memvirt.live.process import Process

from .cgroup import MemoryCgroup
from .ledger import Ledger

_PART_BYTES = 16 << 20  # asked for at one go, so that nobody waits for long
# The kernel's words for "less than that could be reclaimed".
_FELL_SHORT = (errno.EAGAIN, errno.EBUSY, errno.EINTR)


class GroupReclaim:
    """The reclaim of one VM's control group. ``ledger`` None: nothing is ever taken (dry run)."""

    def __init__(self, group: MemoryCgroup, process: Process, ledger: Ledger | None) -> None:
        self._group, self._process, self._ledger = group, process, ledger

    @property
    def lever(self) -> str:
        """What is written to, for an event's reason."""
        file = self._group.reclaim or self._group.limit_file
        return f"{file.name} of {self._group.name}"

    @property
    def impossible(self) -> str:
        """Why the VM's memory cannot be taken through its group; "" if it can."""
        group, pid = self._group, self._process.pid
        try:
            processes = group.processes()
        except OSError as error:
            return f"control group {group.name}: {error.strerror}"
        if pid not in processes:
            return f"control group {group.name} does not hold process {pid}"
        if others := sorted(other for other in processes - {pid} if runs_qemu(other)):
            numbers = ", ".join(map(str, others))
            return f"control group {group.name} holds another VM, too (process {numbers})"
        if group.version == 2 and group.reclaim is None:
            return f"control group {group.name} has no memory.reclaim (Linux 5.19)"
        return ""

    def take(self, pages: int) -> int:
        """Have the kernel take about ``pages`` pages, as far as it can; by how many its use fell.

        Those are page cache, too: only page states tell what became of the VM. Raises OSError if
        the kernel refuses.
        """
        before = self._group.used_bytes
        self._take(pages)
        return max(before - self._group.used_bytes, 0) // PAGE_BYTES

    def _take(self, pages: int) -> None:
        left = pages * PAGE_BYTES
        while left > 0 and self._ledger is not None:
            part = min(left, _PART_BYTES)
            try:
                if (file := self._group.reclaim) is not None:
                    _write(file, str(part))
                else:
                    self._lower_limit(part, self._ledger)
            except OSError as error:
                if error.errno in _FELL_SHORT:
                    return
                raise
            left -= part

    def _lower_limit(self, amount: int, ledger: Ledger) -> None:
        """Version 1: reclaim ``amount`` bytes by the limit. On record, should we die meanwhile."""
        file = self._group.limit_file
        wanted = max(self._group.used_bytes - amount, PAGE_BYTES) // PAGE_BYTES * PAGE_BYTES
        try:
            ledger.change_setting(file, str(wanted))
        finally:
            if str(file) in ledger.record.settings:
                ledger.put_back(file)


def give_limits_back(ledger: Ledger) -> list[str]:
    """Put limits back that a manager has lowered and died; a line for each.

    What cannot be put back has its line, too, and stays on record.
    """
    lines = []
    for path, before in list(ledger.record.settings.items()):
        if not path.endswith("/memory.limit_in_bytes"):
            continue
        try:
            old = ledger.put_back(Path(path))
        except OSError as error:
            lines.append(f"{path}: cannot be set back to {before}: {error.strerror}")
        else:
            lines.append(
                f"{path}: is not there any more" if old is None else f"{path}: {old} again"
            )
    return lines


def _write(file: Path, text: str) -> None:
    """One write(2): its error is the kernel's answer."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
