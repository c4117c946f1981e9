# SPDX-License-Identifier: Apache-2.0
"""Linux system calls that Python has no function for. Each raises OSError; none waits."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
]  # fmt: skip
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]

MOST_RUNS = 1024  # IOV_MAX
_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_SCAN_ARGUMENT = np.dtype(
    [(name, np.uint64) for name in (
        "size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages",
        "category_inverted", "category_mask", "category_anyof_mask", "return_mask",
    )]
)  # fmt: skip
_REGION = np.dtype([("start", np.uint64), ("end", np.uint64), ("categories", np.uint64)])


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def process_vm_readv(
    pid: int, runs: Sequence[tuple[int, int]], out: np.ndarray[Any, np.dtype[np.uint8]]
) -> int:
    """Read ``runs`` (host virtual address, bytes; at most MOST_RUNS) of process ``pid`` into
    ``out``, one after the other; returns the bytes read, fewer if a run is not mapped there."""
    total = sum(size for _, size in runs)
    if total > out.nbytes or len(runs) > MOST_RUNS or not out.flags.c_contiguous:
        raise ValueError(f"{len(runs)} runs of {total} bytes do not fit {out.nbytes} bytes")
    remote = np.array(runs, np.uint64)
    local = np.array([(out.ctypes.data, total)], np.uint64)
    done = int(_libc.process_vm_readv(pid, local.ctypes.data, 1, remote.ctypes.data, len(runs), 0))
    if done < 0:
        error = _error()
        if error.errno == errno.EFAULT:
            return 0
        raise error
    return done


def pages_in_memory(mapping: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, Any]:
    """Which pages of a file mapped in this process are in the page cache: mincore(2)."""
    pages = -(-mapping.nbytes // 4096)
    found = np.zeros(pages, np.uint8)
    if _libc.mincore(mapping.ctypes.data, mapping.nbytes, found.ctypes.data) != 0:
        raise _error()
    return (found & 1).astype(bool)


def pagemap_scan(
    pagemap: int, start: int, end: int, *, any_of: int, most: int = 4096
) -> list[tuple[int, int, int]]:
    """Runs (start, end, categories) of pages that have one of the categories ``any_of``.

    Source: Documentation/admin-guide/mm/pagemap.rst, "Pagemap Scan IOCTL" (Linux 6.7). It neither
    maps nor brings in a page. Raises OSError (ENOTTY, EINVAL) where the kernel has no such call.
    """
    regions = np.zeros(most, _REGION)
    argument = np.zeros(1, _SCAN_ARGUMENT)
    found: list[tuple[int, int, int]] = []
    while start < end:
        argument["size"] = _SCAN_ARGUMENT.itemsize
        argument["start"], argument["end"] = start, end
        argument["vec"], argument["vec_len"] = regions.ctypes.data, most
        argument["category_anyof_mask"] = argument["return_mask"] = any_of
        count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument.view(np.uint8).data, True)
        found += [
            (int(region["start"]), int(region["end"]), int(region["categories"]))
            for region in regions[:count]
        ]
        start = max(int(argument["walk_end"][0]), start + 4096)
    return found
