# SPDX-License-Identifier: Apache-2.0
"""The engine's C functions by their addresses, and the one that the binding does not hand out."""

from __future__ import annotations

import ctypes
from typing import Any

from unicorn.unicorn_py3 import unicorn as unicorn_binding

library = unicorn_binding.uclib


def function_address(name: str) -> int:
    """Where an exported function of the engine is, in this process."""
    return int(ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0)


def hook_function() -> Any:
    """``uc_hook_add`` with the address of a callback as it is."""
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_int,
    )
    return prototype(function_address("uc_hook_add"))
