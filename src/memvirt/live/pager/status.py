# SPDX-License-Identifier: Apache-2.0
"""What is told of a paged VM: one frozen record, one line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from memvirt.address import PAGE_BYTES
from memvirt.size import format_size

from .attachment import Role, RoleLock, is_running, open_backing, read_record
from .blocks import BLOCK_BYTES, block_path
from .latency import percentile
from .page_states import PageTableFile, Word
from .paged_memory import VirtualMachineMemory
from .userfaultfd import UserFaultFd


@dataclass(frozen=True)
class PagingStatus:
    """The state of one paged VM. Latencies are microseconds from reading a fault to its answer;
    ``store_bytes`` is what the block files of its salt take on their file system."""

    name: str
    pid: int
    memory: int
    resident: int
    stored_pages: int
    evicted: int
    restored: int
    zeroed: int
    zero_pages: int
    shared: int
    dirtied: int
    discarded: int
    damaged: int
    drains: int
    drain_microseconds: int
    handlers: int
    fault_50: int | None
    fault_99: int | None
    store_bytes: int
    supervised: bool
    running: bool
    message: str

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def line(self) -> str:
        """For people, on one line."""
        fault = "no faults yet"
        if self.fault_50 is not None:
            fault = f"fault {self.fault_50} us (99 %: {self.fault_99} us)"
        parts = [
            f"{self.name}: {format_size(self.resident)} of {format_size(self.memory)} in memory",
            f"out {self.stored_pages} pages",
            f"evicted {self.evicted}, back {self.restored}",
            fault,
            f"store {format_size(self.store_bytes)}",
        ]
        if self.damaged:
            parts.append(f"DAMAGED {self.damaged}")
        if not self.running:
            parts.append("the VM has ended")
        elif not self.supervised:
            parts.append("no pager supervises it: run memvirt page again, or --detach")
        if self.message:
            parts.append(self.message)
        return "; ".join(parts)


def store_bytes(store: Path) -> int:
    """What the block files take on disk."""
    total = 0
    for kind in BLOCK_BYTES:
        try:
            total += block_path(store, kind).stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def status_of(
    directory: Path, table: PageTableFile, memory: VirtualMachineMemory | None = None
) -> PagingStatus:
    """The status of an attachment; ``memory`` from its supervisor, which has it open.

    Raises PagerError if there is no such attachment.
    """
    record = read_record(directory)
    running = is_running(record.pid, record.started)
    size = sum(region.size for region in record.regions)
    resident = 0
    if memory is not None:
        resident = _resident(memory, table, size)
    elif running:
        files = open_backing(record.pid, record.regions)
        theirs = VirtualMachineMemory(UserFaultFd(-1), record.regions, files)
        resident = _resident(theirs, table, size)
        theirs.close()
    supervised = memory is not None or _is_supervised(directory)
    words, histogram = table.words, list(table.histogram)
    return PagingStatus(
        name=record.name,
        pid=record.pid,
        memory=size,
        resident=resident,
        stored_pages=table.count_stored(),
        evicted=words[Word.EVICTED],
        restored=words[Word.RESTORED],
        zeroed=words[Word.ZEROED],
        zero_pages=words[Word.ZERO_PAGES],
        shared=words[Word.SHARED],
        dirtied=words[Word.DIRTIED],
        discarded=words[Word.DISCARDED],
        damaged=words[Word.DAMAGED],
        drains=words[Word.DRAINS],
        drain_microseconds=words[Word.DRAIN_MICROSECONDS],
        handlers=words[Word.EPOCH],
        fault_50=percentile(histogram, 0.50),
        fault_99=percentile(histogram, 0.99),
        store_bytes=store_bytes(directory.parent),
        supervised=supervised,
        running=running,
        message=table.message,
    )


def _is_supervised(directory: Path) -> bool:
    # Never in the supervisor itself: closing the file would drop its own lock (fcntl(2)).
    lock = RoleLock(directory, Role.SUPERVISOR)
    try:
        return lock.holder() is not None
    finally:
        lock.release()


def _resident(memory: VirtualMachineMemory, table: PageTableFile, size: int) -> int:
    if not memory.evictable:
        return size - table.count_stored() * PAGE_BYTES
    return memory.resident_bytes()
