# SPDX-License-Identifier: Apache-2.0
"""Sending pages of another process to the host's swap, and bringing them back.

Source: process_madvise(2), madvise(2): MADV_PAGEOUT and MADV_WILLNEED (Linux 5.10). The kernel
takes them as advice; only its page tables tell what became of it. MADV_WILLNEED only reads swapped
pages into the swap cache; a read of each (process_vm_readv(2)) then maps them.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from memvirt.address import PAGE_BYTES
from memvirt.live.errors import AccessDenied, KernelFeatureMissing, ProcessGone
from memvirt.live.process import Process
from memvirt.live.ram import Backing, RamLayout
from memvirt.live.runs import runs_of
from memvirt.live.system_calls import MOST_RUNS, process_vm_readv

_PROCESS_MADVISE = 440
_MOST_BYTES = 64 << 20  # in one call, so that nobody waits for long
WILLNEED, PAGEOUT = 3, 21
PAGEABLE = (Backing.ANONYMOUS, Backing.MEMFD, Backing.SHARED_MEMORY)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Adviser:
    """Gives the kernel advice on the memory of one process. Use as a context manager."""

    def __init__(self, process: Process) -> None:
        """Raises ProcessGone."""
        self.process, self.pid = process, process.pid
        try:
            self._descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError as error:
            raise ProcessGone(f"process {process.pid} is gone") from error
        try:
            process.require_alive()  # the number was its all the time, so the descriptor is, too
        except ProcessGone:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; may be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def advise(self, runs: Sequence[tuple[int, int]], advice: int) -> None:
        """Advice on ``runs`` of (host virtual address, bytes). What cannot be followed is skipped.

        Raises ProcessGone, AccessDenied, KernelFeatureMissing.
        """
        for batch in _batches(runs):
            rest = list(batch)
            while rest:
                vector = np.array(rest, np.uint64)
                done = int(
                    _libc.syscall(
                        _PROCESS_MADVISE, ctypes.c_int(self._descriptor),
                        ctypes.c_void_p(vector.ctypes.data), ctypes.c_size_t(len(rest)),
                        ctypes.c_int(advice), ctypes.c_uint(0),
                    )
                )  # fmt: skip
                if done < 0:
                    self._fail(ctypes.get_errno())
                    done = rest[0][1]  # this run cannot be advised on: go on behind it
                rest = _after(rest, max(done, PAGE_BYTES))

    def _fail(self, number: int) -> None:
        if number == errno.ESRCH:
            raise ProcessGone(f"process {self.pid} is gone")
        if number == errno.EPERM:
            raise AccessDenied(
                f"process_madvise of process {self.pid}: not permitted; run memvirt as root "
                "(CAP_SYS_NICE, CAP_SYS_PTRACE)"
            )
        if number in (errno.ENOSYS, errno.EINVAL):
            raise KernelFeatureMissing(
                "this kernel has no process_madvise with MADV_PAGEOUT (Linux 5.10)"
            )
        if number not in (errno.ENOMEM, errno.EFAULT, errno.EAGAIN, errno.EBUSY, errno.EINTR):
            raise OSError(number, os.strerror(number), f"process_madvise of process {self.pid}")


def bring_back(adviser: Adviser, layout: RamLayout, indices: np.ndarray[Any, Any]) -> None:
    """Bring pages, by RAM page index, back from swap.

    Obligation: only pages that are in swap now; the read of a hole would map a page there. Raises
    as ``Adviser.advise``.
    """
    runs = ranges_of(layout, indices)
    adviser.advise(runs, WILLNEED)
    bytes_read = np.zeros(MOST_RUNS, np.uint8)
    firsts = [start + at for start, size in runs for at in range(0, size, PAGE_BYTES)]
    while firsts:
        adviser.process.require_alive()  # what follows goes by its number
        batch = [(first, 1) for first in firsts[:MOST_RUNS]]
        try:
            done = process_vm_readv(adviser.pid, batch, bytes_read)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise ProcessGone(f"process {adviser.pid} is gone") from error
            raise
        firsts = firsts[max(done, 1) :]  # the one that cannot be read is passed by


def _batches(runs: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    batch: list[tuple[int, int]] = []
    size = 0
    for first, count in runs:
        start, end = first, first + count
        while start < end:
            part = min(end - start, _MOST_BYTES - size)
            batch.append((start, part))
            start, size = start + part, size + part
            if size >= _MOST_BYTES or len(batch) == MOST_RUNS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _after(runs: list[tuple[int, int]], done: int) -> list[tuple[int, int]]:
    """What is left of ``runs`` behind their first ``done`` bytes."""
    for number, (start, size) in enumerate(runs):
        if done < size:
            return [(start + done, size - done), *runs[number + 1 :]]
        done -= size
    return []


def ranges_of(layout: RamLayout, indices: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """Ranges (host virtual address, bytes) of pages by RAM page index, in ascending order."""
    if indices.size == 0:
        return []
    addresses = np.sort(layout.host_addresses_of(np.asarray(indices, np.int64)))
    return [(first, count * PAGE_BYTES) for first, count in runs_of(addresses, PAGE_BYTES)]


def pageable(layout: RamLayout) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which pages, by RAM page index, are of a kind that the host's swap takes."""
    found = np.zeros(layout.pages, np.bool_)
    for block in layout.blocks:
        if block.backing in PAGEABLE:
            found[block.first_index : block.first_index + block.pages] = True
    return found
