# SPDX-License-Identifier: Apache-2.0
"""Swap: one file for each VM, allocated in full before the VM starts, written in batches.

A page on its way out lies in a *write buffer*, a frame of the VMkernel's, until its batch has been
written by a thread of its own, while the guests run on. Batches are collected at the next quiescent
point, so what the policies see does not depend on the speed of the disk. A page that could not be
written stays in its buffer, can be read from there, and is tried again: an error loses nothing.
Each slot has a checksum (XXH3-64), kept in memory and verified when the page comes back. Slots of
one VM's file are known to that VM only, and the file is private to the user who runs memvirt.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from memvirt.address import PAGE_BYTES, MachinePageNumber, PhysicalPageNumber, PpnArray
from memvirt.errors import MemvirtError
from memvirt.machine.content import Pages, hash_pages
from memvirt.machine.memory import FrameKind, MachineMemory

from .backing import REFUSED, BackingStoreError, PageCorrupted, Slots


class SwapSpaceError(MemvirtError):
    """A swap file cannot be made; the message says which, how large, and why."""


class WriteBuffers:
    """``count`` frames in which pages wait to be written, for all VMs of a host."""

    def __init__(self, machine: MachineMemory, count: int) -> None:
        self.machine = machine
        self.count = count
        self._mpns = machine.allocate(count, kind=FrameKind.VMKERNEL)
        self._free = self._mpns.tolist()
        self.files: list[SwapFile] = []
        self.writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="swap-writer")

    @property
    def free(self) -> int:
        return len(self._free)

    def write_all(self) -> None:
        """Write everything that waits, whatever VM it belongs to."""
        for file in self.files:
            file.submit()
        for file in self.files:
            file.complete()

    def take(self) -> MachinePageNumber:
        return self._free.pop()

    def give_back(self, mpn: MachinePageNumber) -> None:
        self._free.append(mpn)

    def close(self) -> None:
        self.writer.shutdown(wait=True)
        self.machine.release(self._mpns)


class SwapFile:
    """The swap file of one VM, of ``slots`` pages, at ``path``.

    ``wait_ns`` is the virtual time a guest waits for a page. ``put``, ``submit`` and ``complete``
    are called with all processors stopped; a running VM takes its own pages. Raises
    SwapSpaceError if the file system has no room for all of it.
    """

    def __init__(self, path: Path, slots: int, buffers: WriteBuffers, *, wait_ns: int = 0) -> None:
        self.path = path
        self.slots = slots
        self.wait_ns = wait_ns
        self.frames = 0  # none of the VM's: pages wait in the VMkernel's buffers
        self.reads = 0
        self.writes = 0
        self.error: OSError | None = None  # of the last batch, until one succeeds
        self._buffers = buffers
        self._checksums = np.zeros(slots, np.uint64)
        self._free = list(range(slots - 1, -1, -1))
        self._buffered: dict[int, MachinePageNumber] = {}  # by slot: its write buffer
        self._waiting: list[int] = []  # slots to write with the next batch
        self._writing: list[int] = []
        self._dropped: set[int] = set()  # given up while they were being written
        self._batch: Future[None] | None = None
        self._fd = self._create()
        buffers.files.append(self)

    def _create(self) -> int:
        fd = -1
        try:
            # A new file, not one (or a link) that somebody put there: its mode would be theirs.
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            if self.slots:
                os.posix_fallocate(fd, 0, self.slots * PAGE_BYTES)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
                self.path.unlink(missing_ok=True)
            raise SwapSpaceError(
                f"{self.path}: a swap file of {self.slots * PAGE_BYTES >> 10} KiB cannot be made: "
                f"{error.strerror}"
            ) from error
        return fd

    def grow(self, slots: int) -> None:
        """Make room for ``slots`` pages in all, not fewer than now. Called with all VMs stopped.

        Raises SwapSpaceError, with nothing changed, if the file system has no room.
        """
        more = slots - self.slots
        if more <= 0:
            return
        try:
            os.posix_fallocate(self._fd, self.slots * PAGE_BYTES, more * PAGE_BYTES)
        except OSError as error:
            raise SwapSpaceError(
                f"{self.path}: the swap file cannot grow to {slots * PAGE_BYTES >> 10} KiB: "
                f"{error.strerror}"
            ) from error
        self._checksums = np.concatenate((self._checksums, np.zeros(more, np.uint64)))
        self._free[:0] = range(slots - 1, self.slots - 1, -1)
        self.slots = slots

    @property
    def used(self) -> int:
        """Slots with a page."""
        return self.slots - len(self._free) - len(self._dropped)

    @property
    def buffered(self) -> int:
        """Pages not written yet."""
        return len(self._buffered)

    # Out ---------------------------------------------------------------------------------------

    def put(self, ppns: PpnArray, contents: Pages) -> Slots:
        """Keep pages: a slot each, or REFUSED when the file, or writing, cannot take more."""
        slots = np.full(len(contents), REFUSED, np.int64)
        checksums = hash_pages(contents, np.arange(len(contents)))
        for i in range(len(contents)):
            if not self._free or not self._have_buffer():
                break
            slot, mpn = self._free.pop(), self._buffers.take()
            self._buffers.machine.page(mpn)[:] = contents[i]
            self._checksums[slot] = checksums[i]
            self._buffered[slot] = mpn
            self._waiting.append(slot)
            slots[i] = slot
        return slots

    def _have_buffer(self) -> bool:
        if self.error is None and (self._buffers.free == 0 or not self._below_share()):
            # Reclaiming faster than the disk writes has to wait for it.
            self._buffers.write_all()
        return self._buffers.free > 0 and self.error is None and self._below_share()

    def _below_share(self) -> bool:
        """A file whose writes fail must not hold all buffers: others could not swap either."""
        return len(self._buffered) < max(self._buffers.count // 2, 1)

    def submit(self) -> None:
        """Hand the pages that wait to the writer, unless a batch is under way."""
        if self._batch is not None or not self._waiting:
            return
        self._writing, self._waiting = sorted(self._waiting), []
        runs = [(slot, self._buffered[slot]) for slot in self._writing]
        self._batch = self._buffers.writer.submit(self._write, runs)

    def _write(self, pages: list[tuple[int, MachinePageNumber]]) -> None:
        """Write pages, (slot, MPN) in ascending order of slots; neighbours in one call."""
        start = 0
        while start < len(pages):
            end = start + 1
            while end < len(pages) and end - start < os.sysconf("SC_IOV_MAX"):
                if pages[end][0] != pages[start][0] + end - start:
                    break
                end += 1
            views = [self._buffers.machine.page(mpn).data for _, mpn in pages[start:end]]
            self._write_at(views, pages[start][0] * PAGE_BYTES)
            start = end

    def _write_at(self, views: list[memoryview], offset: int) -> None:
        wanted = sum(len(view) for view in views)
        written = os.pwritev(self._fd, views, offset)
        if written == wanted:
            return
        rest = b"".join(views)[written:]  # a short write: go on, or learn why not
        while rest:
            offset += written
            written = os.pwrite(self._fd, rest, offset)
            if written == 0:
                raise OSError(errno.EIO, "nothing could be written")
            rest = rest[written:]

    def complete(self) -> None:
        """Collect the batch under way, and free what the guest has taken back meanwhile.

        Pages that could not be written wait for the next batch.
        """
        if self._batch is not None:
            batch, self._batch = self._batch, None
            try:
                batch.result()
            except OSError as error:
                self.error = error
                again = [slot for slot in self._writing if slot not in self._dropped]
                self._waiting = again + self._waiting
            else:
                self.error = None
                for slot in self._writing:
                    self._forget_buffer(slot)
                self.writes += len(self._writing)
            self._writing = []
        for slot in sorted(self._dropped, reverse=True):
            if slot in self._buffered:
                self._forget_buffer(slot)
            self._free.append(slot)
        self._dropped = set()
        if not self._waiting:
            self.error = None  # nothing is left that could not be written: the next batch will tell

    def _forget_buffer(self, slot: int) -> None:
        self._buffers.give_back(self._buffered.pop(slot))

    def oldest(self, count: int) -> list[tuple[PhysicalPageNumber, int]]:
        """None: there is no place behind it for pages to move on to."""
        return []

    def settle(self) -> None:
        """Nothing to give back: the buffers are the VMkernel's, see ``complete``."""

    def retry(self) -> bool:
        """Try again after an error; True if all waiting pages are written now."""
        self.submit()
        self.complete()
        return self.error is None

    # Back --------------------------------------------------------------------------------------

    def read(self, slot: int) -> bytes:
        """The page in ``slot``. Raises BackingStoreError or PageCorrupted."""
        mpn = self._buffered.get(slot)
        if mpn is not None:
            content = self._buffers.machine.page(mpn).tobytes()
        else:
            content = self._read_at(slot * PAGE_BYTES)
        row = np.frombuffer(content, np.uint8).reshape(1, -1)
        if hash_pages(row, np.zeros(1))[0] != self._checksums[slot]:
            raise PageCorrupted(f"{self.path}: slot {slot} is not what was written")
        return content

    def _read_at(self, offset: int) -> bytes:
        content = b""
        try:
            # A read may be short though the file goes on (a signal, a network file system).
            while len(content) < PAGE_BYTES:
                part = os.pread(self._fd, PAGE_BYTES - len(content), offset + len(content))
                if not part:
                    break
                content += part
        except OSError as error:
            raise BackingStoreError(
                f"{self.path}: offset {offset:#x} cannot be read: {error.strerror}"
            ) from error
        if len(content) != PAGE_BYTES:
            raise PageCorrupted(f"{self.path}: ends at {offset + len(content):#x}")
        return content

    def take(self, slot: int) -> bytes:
        content = self.read(slot)
        self.reads += 1
        self.discard([slot])
        return content

    def discard(self, slots: Iterable[int]) -> None:
        for slot in slots:
            if slot not in self._buffered:
                self._free.append(slot)
                continue
            self._dropped.add(slot)  # its buffer may be read by the writer just now
            if slot not in self._writing:
                self._waiting.remove(slot)

    def slots_in_use(self) -> Slots:
        """Slots that hold a page of the guest's."""
        in_use = np.ones(self.slots, bool)
        in_use[self._free] = False
        in_use[list(self._dropped)] = False
        return np.flatnonzero(in_use)

    def close(self) -> None:
        """Wait for the writer, give the buffers back, delete the file."""
        if self._fd < 0:
            return
        self.complete()
        for mpn in self._buffered.values():
            self._buffers.give_back(mpn)
        self._buffered, self._waiting = {}, []
        self._buffers.files.remove(self)
        os.close(self._fd)
        self._fd = -1
        self.path.unlink(missing_ok=True)
