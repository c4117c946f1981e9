# SPDX-License-Identifier: Apache-2.0
"""The decorator of compiled kernels, typed.

Numba's own decorators hide a function's signature from the type checker. This one keeps it, so that
a kernel handed the wrong record, or an address of the wrong space, is an error before it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit
from numba.extending import overload, register_jitable

from memvirt import address
from memvirt.compiled_cache import use_compiled_cache

use_compiled_cache()  # before the first kernel is defined

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile ``function`` with Numba: no Python objects, no GIL, kept between runs.

    Called from Python it takes records, arrays and numbers, and releases the GIL while it runs.
    """
    return cast(F, njit(nogil=True, cache=True)(function))


def _same(_: Any) -> Any:
    return lambda word: word


# Kernels name the space of a word as Python does: these calls compile to nothing.
for _space in (
    address.GuestVirtualAddress,
    address.GuestPhysicalAddress,
    address.MachineAddress,
    address.HostVirtualAddress,
    address.PhysicalPageNumber,
    address.MachinePageNumber,
):
    overload(_space, strict=False)(_same)
for _conversion in (
    address.physical_page_number,
    address.machine_page_number,
    address.guest_physical_address,
    address.machine_address,
    address.page_offset,
):
    register_jitable(_conversion)
