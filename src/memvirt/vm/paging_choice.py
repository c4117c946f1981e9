# SPDX-License-Identifier: Apache-2.0
"""How a VM is to be paged, by the name that people write."""

from __future__ import annotations

from memvirt.names import choose
from memvirt.vmm.monitor import PagingMode


def paging_mode(paging: PagingMode | str) -> PagingMode:
    """A paging mode, or the one of that name in any case. Raises UnknownName."""
    if isinstance(paging, PagingMode):
        return paging
    modes = {mode.name.lower(): mode for mode in PagingMode}
    return choose(modes, str(paging).lower(), what="paging mode")
