# SPDX-License-Identifier: Apache-2.0
"""Before a command's first VM: the kernels are compiled, and what compiles them is not imported
where nothing is left to do.
"""

from __future__ import annotations

from memvirt.compiled_cache import is_warm


def make_ready() -> None:
    """Compile what VMs need if that was not done yet, and show it. Raises ProcessorError."""
    if not is_warm():
        from .warm import warm  # noqa: PLC0415

        warm()
