# SPDX-License-Identifier: Apache-2.0
"""Reading pages of a live VM, without a mapping of them and without touching holes.

Private memory is read by process_vm_readv, shared memory from its file: neither keeps a page from
being paged out or merged afterwards. Reading a page that has no frame would make the host allocate
or map one, and reading a swapped one brings it back, so callers choose pages by their state first.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Self

import numpy as np

from memvirt.address import PAGE_BYTES

from .errors import AccessDenied, LiveError
from .page_states import open_backing
from .process import Process
from .ram import Indices, RamBlock, RamLayout
from .runs import runs_of
from .system_calls import MOST_RUNS, process_vm_readv


class GuestContent:
    """The content of one VM's RAM. Use as a context manager, or ``close`` it."""

    def __init__(self, process: Process, layout: RamLayout) -> None:
        self._process = process
        self._layout = layout
        self._files: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files of shared blocks; may be called again."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def read(self, indices: Indices, out: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Read pages by RAM page index, ascending, into ``out`` (at least 4096 bytes for each).

        Obligation: the caller has seen each page to be resident (``page_states``). Raises
        ProcessGone, AccessDenied, LiveError if the memory is unplugged meanwhile.
        """
        done = 0
        for block in self._layout.blocks:
            inside = indices[
                (indices >= block.first_index) & (indices < block.first_index + block.pages)
            ]
            if inside.size == 0:
                continue
            part = out[done * PAGE_BYTES : (done + inside.size) * PAGE_BYTES]
            if block.shared:
                self._read_file(block, inside - block.first_index, part)
            else:
                self._read_process(block, inside - block.first_index, part)
            done += inside.size
        if done != indices.size:
            raise IndexError("a RAM page index is beyond the VM's memory")

    def read_through_process(self, index: int, out: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """One page as the process itself would read it: a pager of its memory has to bring it."""
        block = next(item for item in self._layout.blocks if index < item.first_index + item.pages)
        self._read_process(block, np.array([index - block.first_index]), out)

    def _read_process(self, block: RamBlock, pages: Indices, out: Any) -> None:
        runs = [
            (block.host_address + first * PAGE_BYTES, count * PAGE_BYTES)
            for first, count in runs_of(pages)
        ]
        at = 0
        for start in range(0, len(runs), MOST_RUNS):
            some = runs[start : start + MOST_RUNS]
            size = sum(length for _, length in some)
            try:
                done = process_vm_readv(self._process.pid, some, out[at : at + size])
            except OSError as error:
                self._process.require_alive()
                if error.errno == errno.EPERM:
                    raise AccessDenied(
                        f"process {self._process.pid}: reading its memory: {error.strerror}; run "
                        "memvirt as root (CAP_SYS_PTRACE)"
                    ) from error
                raise
            # The number alone was used: it must still be this process's.
            self._process.require_alive()
            if done != size:
                raise self._vanished(block)
            at += size

    def _read_file(self, block: RamBlock, pages: Indices, out: Any) -> None:
        descriptor = self._files.get(block.name)
        if descriptor is None:
            descriptor = self._files[block.name] = open_backing(self._process, block)
        view = memoryview(out)
        at = 0
        for first, count in runs_of(pages):
            size = count * PAGE_BYTES
            part = view[at : at + size]
            while part.nbytes:
                offset = block.file_offset + first * PAGE_BYTES + size - part.nbytes
                done = os.preadv(descriptor, [part], offset)
                if done == 0:
                    raise self._vanished(block)
                part = part[done:]
            at += size

    def _vanished(self, block: RamBlock) -> LiveError:
        self._process.require_alive()
        return LiveError(
            f"process {self._process.pid}: RAM block {block.name} changed while it was read "
            "(unplugged, or migrated away)"
        )
