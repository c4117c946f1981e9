# SPDX-License-Identifier: Apache-2.0
"""What memvirt's own build of the engine exports beyond Unicorn's API.

Its other side is ``engine/source/memvirt.c``. Whether the library in use is that build is asked of
the library itself: it has the functions, of the interface number known here, or it is another one.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from unicorn.unicorn_py3 import unicorn as unicorn_binding

from .library import ENGINE_VERSION

INTERFACE = 2  # MEMVIRT_INTERFACE in engine/source/memvirt.c
_library = unicorn_binding.uclib
_U64 = ctypes.c_uint64


class Layout(ctypes.Structure):
    """``MemvirtLayout``: host addresses inside one engine, and offsets in its register file."""

    _fields_ = tuple(
        (name, _U64)
        for name in (
            *("registers", "fault_address", "error_code"),
            *("star", "lstar", "cstar", "fmask", "kernel_gs_base"),
            *("large_pages", "tlb_record_bytes", "mmu_indexes"),
            *("rip", "flags", "hidden_flags", "segments", "segment_bytes"),
            *("cr0", "cr2", "cr3", "cr4", "efer", "exception_in_flight"),
        )
    )


def _is_own_build() -> bool:
    try:
        interface = _library.memvirt_interface
    except AttributeError:
        return False
    return int(interface()) == INTERFACE


IS_OWN_BUILD = _is_own_build()


def used_engine() -> str:
    """The engine's name and version, and whose build it is."""
    whose = "memvirt's build" if IS_OWN_BUILD else "the package index's build (slower)"
    return f"unicorn {ENGINE_VERSION}, {whose}"


def layout_of(handle: Any) -> Layout | None:
    """The layout of the engine with this handle; None in another build, or of another size."""
    if not IS_OWN_BUILD:
        return None
    function = _library.memvirt_layout
    function.restype = _U64
    layout = Layout()
    size = ctypes.sizeof(layout)
    written = function(handle, ctypes.byref(layout), _U64(size))
    return layout if written == size else None


def set_control(handle: Any, state_at: int, callback: int) -> None:
    """Have the engine ask ``callback`` (``control.on_control``) for control registers and MSRs.

    Own build only.
    """
    _library.memvirt_set_control(handle, ctypes.c_void_p(callback), ctypes.c_void_p(state_at))


def count_blocks(handle: Any, state: np.ndarray[Any, Any], callback: int) -> None:
    """Have the engine count code bytes in the ``EngineState`` that ``state`` holds.

    ``callback`` is the address of a ``UC_HOOK_BLOCK`` callback, called at the begin of a block
    where ``deadline_code_bytes`` has come; the engine overwrites that field when it is asked to
    stop. Own build only; before any guest code is translated.
    """
    at, fields = state.ctypes.data, state.dtype.fields
    assert fields is not None
    names = ("code_bytes", "deadline_code_bytes")
    count, deadline = (ctypes.c_void_p(at + fields[name][1]) for name in names)
    user = ctypes.c_void_p(at)
    _library.memvirt_count_blocks(handle, count, deadline, ctypes.c_void_p(callback), user)
