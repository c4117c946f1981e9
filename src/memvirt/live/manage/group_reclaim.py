# SPDX-License-Identifier: Apache-2.0
"""Taking memory from a VM through its control group: the kernel chooses the pages.

It is the lever for what advice on single pages leaves: merged pages, pages of QEMU itself, its page
cache. How many pages are taken is ours to say, which ones the kernel's to choose (the coldest of
its lists).

- Version 2: ``memory.reclaim`` (Linux 5.19) takes a number of bytes and is done when it returns.
- Version 1 has no such file. Its ``memory.force_empty`` takes all, below any reservation, and is
  not used. Its limit, set below what is in use, makes the kernel reclaim the difference before the
  write returns; then the limit is put back at once. If that cannot be done the limit stays.
  A virtual processor that allocates in that moment stands at the limit, and must not be killed for
  it: the group's OOM killer is off meanwhile (then it waits until the limit is back), the limit is
  never lower than what is in use less one small part, and with little free swap it is left alone.

Sources: Linux Documentation, admin-guide/cgroup-v2.rst ("memory.reclaim") and
admin-guide/cgroup-v1/memory.rst (5.1 force_empty, limit_in_bytes, 10 OOM control).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memvirt.address import PAGE_BYTES
from memvirt.live.discovery import runs_qemu
from memvirt.live.errors import LiveError
from memvirt.live.process import Process, resident_pages
from memvirt.size import format_size

from .cgroup import MemoryCgroup
from .ledger import Ledger

_PART_BYTES = 16 << 20  # asked for at one go, so that nobody waits for long
_LIMIT_PART_BYTES = 4 << 20  # by so much a limit is lowered at one go
_LEAST_SWAP_BYTES = 16 * _LIMIT_PART_BYTES  # that are free: else no limit is lowered
_MOST_OTHERS = 0.1  # of the QEMU's resident memory that other processes of its group may have
# The kernel's words for "less than that could be reclaimed".
_FELL_SHORT = (errno.EAGAIN, errno.EBUSY, errno.EINTR)


class GroupReclaim:
    """The reclaim of one VM's control group. ``ledger`` None: nothing is ever taken (dry run).

    ``free_swap`` tells the pages that may still be sent to the host's swap.
    """

    def __init__(
        self,
        group: MemoryCgroup,
        process: Process,
        ledger: Ledger | None,
        free_swap: Callable[[], int],
    ) -> None:
        self._group, self._process, self._ledger = group, process, ledger
        self._free_swap = free_swap

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
        if problem := self._others(processes - {pid}):
            return problem
        if group.version == 2 and group.reclaim is None:
            return f"control group {group.name} has no memory.reclaim (Linux 5.19)"
        if group.version == 1 and not group.oom_control.exists():
            return f"control group {group.name} has no memory.oom_control"
        return ""

    def _others(self, others: set[int]) -> str:
        """Why what the kernel takes might be of other processes; "" if those are small helpers."""
        try:
            own = resident_pages(self._process)
        except (LiveError, OSError) as error:
            return str(error)
        theirs = sum(map(_resident_pages, others))
        if theirs <= _MOST_OTHERS * own:
            return ""
        return (
            f"control group {self._group.name} holds other processes, too: they have "
            f"{format_size(theirs * PAGE_BYTES)}, the VM {format_size(own * PAGE_BYTES)}; start "
            "the VM in a group of its own"
        )

    def take(self, pages: int) -> int:
        """Have the kernel take about ``pages`` pages, as far as it can; by how many its use fell.

        Those are page cache, too: only page states tell what became of the VM. Raises OSError if
        the kernel refuses, LiveError if there is too little free swap to lower a limit.
        """
        before, ledger = self._group.used_bytes, self._ledger
        try:
            if ledger is None:
                pass
            elif (file := self._group.reclaim) is not None:
                for part in _parts(pages * PAGE_BYTES, _PART_BYTES):
                    _write(file, str(part))
            else:
                self._by_limit(pages * PAGE_BYTES, ledger)
        except OSError as error:
            if error.errno not in _FELL_SHORT:
                raise
        return max(before - self._group.used_bytes, 0) // PAGE_BYTES

    def _by_limit(self, amount: int, ledger: Ledger) -> None:
        """Version 1: reclaim ``amount`` bytes by the limit, as long as there is swap for them."""
        limit = self._group.limit_file
        if not self._swap_is_there:
            raise LiveError(
                f"the limit of {self._group.name} is left alone: less than "
                f"{format_size(_LEAST_SWAP_BYTES)} of swap are free"
            )
        # As long as a limit cannot be put back its OOM killer stays off.
        with _changed(ledger, self._group.oom_control, "1", after=limit):
            for part in _parts(amount, _LIMIT_PART_BYTES):
                if not self._swap_is_there:
                    return
                wanted = max(self._group.used_bytes - part, PAGE_BYTES) // PAGE_BYTES * PAGE_BYTES
                with _changed(ledger, limit, str(wanted)):
                    pass

    @property
    def _swap_is_there(self) -> bool:
        return self._free_swap() * PAGE_BYTES >= _LEAST_SWAP_BYTES


def _resident_pages(pid: int) -> int:
    """Of process ``pid``; none if it has ended."""
    try:
        with Process(pid) as process:
            return resident_pages(process)
    except (LiveError, OSError):
        return 0


def _parts(amount: int, most: int) -> Iterator[int]:
    for start in range(0, amount, most):
        yield min(amount - start, most)


@contextmanager
def _changed(
    ledger: Ledger, file: Path, value: str, *, after: Path | None = None
) -> Iterator[None]:
    """A kernel's file has ``value`` inside. On record, should we die meanwhile.

    It stays there at the end as long as ``after`` could not be put back. Raises OSError.
    """
    try:
        ledger.change_setting(file, value)
        yield
    finally:
        settings = ledger.record.settings
        if str(file) in settings and (after is None or str(after) not in settings):
            ledger.put_back(file)


def give_limits_back(ledger: Ledger) -> list[str]:
    """Put limits back that a manager has lowered and died, then OOM killers; a line for each.

    What cannot be put back has its line, too, and stays on record.
    """
    return ledger.put_all_back(("memory.limit_in_bytes", "memory.oom_control"))[0]


def _write(file: Path, text: str) -> None:
    """One write(2): its error is the kernel's answer."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
