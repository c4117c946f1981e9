# SPDX-License-Identifier: Apache-2.0
"""The machine memory that live VMs may have: what the VMkernel has to know of this host."""

from __future__ import annotations

from collections.abc import Callable

from memvirt.live.host_memory import HostPages, read_host_pages

from .cgroup import MemoryCgroup


class LiveMachine:
    """``MachineFrames`` of a host whose free memory Linux manages.

    Free is the least of three: the budget less what the VMs' processes use, what Linux says is
    available, and what is left under the limit of a control group. ``update`` looks anew; between
    two looks the figures stand still, so that one quiescent point goes by one measurement.
    """

    pool = None

    def __init__(
        self,
        budget: int,
        *,
        cgroup: MemoryCgroup | None = None,
        host_pages: Callable[[], HostPages] = read_host_pages,
    ) -> None:
        self._host_pages = host_pages
        self._cgroup = cgroup
        self._budget = min(budget, host_pages().total)
        if cgroup is not None and cgroup.limit is not None:
            self._budget = min(self._budget, cgroup.limit)
        self._free = self._budget

    @property
    def frames(self) -> int:
        return self._budget

    @property
    def free_frames(self) -> int:
        return max(self._free, 0)

    def update(self, used: int) -> HostPages:
        """Look at the host; ``used`` are the pages of all VMs' processes. Raises OSError."""
        pages = self._host_pages()
        self._free = min(self._budget - used, pages.available)
        if self._cgroup is not None:
            room = self._cgroup.room()
            if room is not None:
                self._free = min(self._free, room)
        return pages
