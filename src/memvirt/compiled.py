# SPDX-License-Identifier: Apache-2.0
"""The decorators of compiled kernels and of callbacks for C, typed.

Numba's own decorators hide a function's signature from the type checker. ``compiled`` keeps it, so
that a kernel handed the wrong record, or an address of the wrong space, is an error before it runs.
Importing a module compiles nothing: a kernel is compiled, or taken from the cache, when it is first
called, a callback when its address is first asked for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import config, njit, types
from numba.core import event
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.registry import CPUDispatcher
from numba.core.sigutils import normalize_signature
from numba.extending import overload, register_jitable

from memvirt import address
from memvirt.compiled_cache import KernelCache, use_compiled_cache

use_compiled_cache()  # before the first kernel is defined

F = TypeVar("F", bound=Callable[..., Any])

KERNELS: list[str] = []  # qualified names of all that are defined
CALLBACKS: list[Callback] = []
_SILENT_SECONDS = 2.0


class _Kernel(CPUDispatcher):  # type: ignore[misc]
    """A compiled function that is compiled once for an integer, not once for each constant.

    Numba asks for a version of its own for every literal argument (a vector, a level, a register's
    number). They would be the same code: LLVM propagates constants where it inlines.
    """

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """What Numba asks a called function for, without the literals in its question."""
        plain = tuple(types.unliteral(argument) for argument in args)
        return super().get_call_template(plain, {k: types.unliteral(v) for k, v in kws.items()})


def _share_cache(owner: Any) -> None:
    if isinstance(owner._cache, FunctionCache):
        owner._cache.__class__ = KernelCache


def compiled(function: F) -> F:
    """Compile ``function`` with Numba: no Python objects, no GIL, kept between runs.

    Called from Python it takes records, arrays and numbers, and releases the GIL while it runs.
    """
    KERNELS.append(f"{function.__module__}.{function.__qualname__}")
    kernel = njit(nogil=True, cache=True, no_cfunc_wrapper=True)(function)
    if isinstance(kernel, CPUDispatcher):  # NUMBA_DISABLE_JIT leaves the function as it is
        kernel.__class__ = _Kernel
        _share_cache(kernel)
    return cast(F, kernel)


def compile_ahead(kernel: Callable[..., Any], *arguments: Any) -> None:
    """Compile ``kernel`` for ``arguments`` (Numba types), unless it is in the cache."""
    if isinstance(kernel, CPUDispatcher):
        kernel.compile(arguments)


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


class Callback:
    """A function that C calls by its address: compiled when the address is first asked for."""

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self._signature = signature
        self._compiled: CFunc | None = None

    def __repr__(self) -> str:
        return f"<callback {self.function.__qualname__}: {self._signature}>"

    @property
    def address(self) -> int:
        """Where the machine code is, in this process. It stays there while ``self`` lives."""
        if config.DISABLE_JIT:
            return 0  # its kernels are plain Python: nothing that C could call
        if self._compiled is None:
            compiled = CFunc(self.function, normalize_signature(self._signature), {}, {})
            compiled.enable_caching()
            _share_cache(compiled)
            compiled.compile()
            self._compiled = compiled
        address = self._compiled.address
        assert address is not None
        return int(address)


def callback(signature: str) -> Callable[[Callable[..., Any]], Callback]:
    """Make a function a ``Callback`` of a C signature, in Numba's spelling: ``int32(int64)``."""

    def decorate(function: Callable[..., Any]) -> Callback:
        made = Callback(function, signature)
        CALLBACKS.append(made)
        return made

    return decorate


class _CompileClock(event.Listener):  # type: ignore[misc]
    """What compiling took, which Numba does in one thread at a time; said once on standard error.

    ``silent``: it has been said, or is shown in another way.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.processor_seconds = 0.0
        self.silent = False
        self._wall_seconds = 0.0
        self._since = (0.0, 0.0)

    def on_start(self, event: Any) -> None:
        """A kernel that is not in the cache is compiled; what it calls may be, inside."""
        if self.depth == 0:
            self._since = (time.monotonic(), time.thread_time())
        self.depth += 1

    def on_end(self, event: Any) -> None:
        """It is done."""
        self.depth -= 1
        if self.depth:
            return
        wall, processor = self._since
        self._wall_seconds += time.monotonic() - wall
        self.processor_seconds += time.thread_time() - processor
        if not self.silent and self._wall_seconds > _SILENT_SECONDS:
            self.silent = True
            print(
                "memvirt: compiling for this machine; it is kept for the next time "
                "(memvirt warm does it ahead)",
                file=sys.stderr,
            )


_clock = _CompileClock()
event.register("numba:compile", _clock)


def compile_seconds() -> float | None:
    """Processor time that compiling has taken in this process; None while something is compiled."""
    return None if _clock.depth else _clock.processor_seconds


def silence_notice() -> None:
    """Say nothing of compiling: whoever calls this shows it in another way."""
    _clock.silent = True
