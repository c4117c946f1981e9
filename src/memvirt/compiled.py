# SPDX-License-Identifier: Apache-2.0
"""The decorator of compiled kernels, typed.

Numba's own decorators hide a function's signature from the type checker. This one keeps it, so that
a kernel handed the wrong record, or an address of the wrong space, is an error before it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit, types
from numba.core.registry import CPUDispatcher

from memvirt.compiled_cache import use_compiled_cache

use_compiled_cache()  # before the first kernel is defined

F = TypeVar("F", bound=Callable[..., Any])


class _Kernel(CPUDispatcher):  # type: ignore[misc]
    """A compiled function that is compiled once for an integer, not once for each constant.

    Numba asks for a version of its own for every literal argument (a vector, a level, a register's
    number). They would be the same code: LLVM propagates constants where it inlines.
    """

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """What Numba asks a called function for, without the literals in its question."""
        plain = tuple(types.unliteral(argument) for argument in args)
        return super().get_call_template(plain, {k: types.unliteral(v) for k, v in kws.items()})


def compiled(function: F) -> F:
    """Compile ``function`` with Numba: no Python objects, no GIL, kept between runs.

    Called from Python it takes records, arrays and numbers, and releases the GIL while it runs.
    """
    kernel = njit(nogil=True, cache=True, no_cfunc_wrapper=True)(function)
    if isinstance(kernel, CPUDispatcher):  # NUMBA_DISABLE_JIT leaves the function as it is
        kernel.__class__ = _Kernel
    return cast(F, kernel)
