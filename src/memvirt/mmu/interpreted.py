# SPDX-License-Identifier: Apache-2.0
"""Raw loads and stores for kernels that run as plain Python (``NUMBA_DISABLE_JIT=1``).

Slow, and of use for small tests only: in a debugger, for coverage, and because plain Python shows
what compiled code hides: an index of -1, an unbound name, a word that does not fit 64 bits. Every
access is looked up in the table of ranges where there is one (``host_ranges``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from memvirt.compiled_cache import CHECKED

from .host_ranges import TABLE


class WildAccess(Exception):
    """A kernel's access to host memory that is none of its business; the message says which."""


def _check(address: int, size: int, what: str) -> int:
    address = int(address)
    if CHECKED and not TABLE.contains(address, size):
        where = TABLE.describe(address, size)
        raise WildAccess(f"{what} of {size} bytes at {address:#x}: {where}")
    return address


def load64(address: int) -> int:
    return ctypes.c_int64.from_address(_check(address, 8, "load")).value


def load32(address: int) -> int:
    return ctypes.c_uint32.from_address(_check(address, 4, "load")).value


def load8(address: int) -> int:
    return ctypes.c_uint8.from_address(_check(address, 1, "load")).value


def store64(address: int, value: int) -> None:
    ctypes.c_int64.from_address(_check(address, 8, "store")).value = int(value)


def store32(address: int, value: int) -> None:
    ctypes.c_uint32.from_address(_check(address, 4, "store")).value = int(value)


def store8(address: int, value: int) -> None:
    ctypes.c_uint8.from_address(_check(address, 1, "store")).value = int(value)


def copy_bytes(destination: int, source: int, count: int) -> None:
    count = int(count)
    ctypes.memmove(_check(destination, count, "store"), _check(source, count, "load"), count)


def record_reference(dtype: Any) -> Callable[[int], Any]:
    """A function from a host address to the record of ``dtype`` that lies there."""

    def record_at(address: int) -> Any:
        memory = (ctypes.c_uint8 * dtype.itemsize).from_address(
            _check(address, dtype.itemsize, "record")
        )
        return np.frombuffer(memory, dtype)[0]

    return record_at
