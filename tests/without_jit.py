# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin (``-p tests.without_jit``) for runs with NUMBA_DISABLE_JIT=1.

Numba still compiles C callbacks then, whose kernels are plain Python by now: they cannot be. The
engine's callbacks are of no use without compiled code, so they become names without an address.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

assert numba.config.DISABLE_JIT, "set NUMBA_DISABLE_JIT=1"


class NoCallback:
    """What stands for a C callback: it has no address that anything could call."""

    address = 0

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


def _cfunc(signature: Any, **options: Any) -> Callable[[Callable[..., Any]], NoCallback]:
    return NoCallback


numba.cfunc = _cfunc
