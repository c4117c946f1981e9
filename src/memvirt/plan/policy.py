# SPDX-License-Identifier: Apache-2.0
"""The one door between planning and the VMkernel: every rule of policy a plan uses comes from here.

Nothing in ``plan/`` repeats a rule: minimum free memory, the host's states with their borders and
hysteresis, shares after the idle memory tax, min-funding revocation and admission are the
VMkernel's own functions. When they change there, plans change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memvirt.address import PAGE_BYTES
from memvirt.vmkernel.admission import Admission, AdmissionError, VmSettings
from memvirt.vmkernel.allocation import revoke, weights
from memvirt.vmkernel.ballooning import DEFLATE_PERCENT
from memvirt.vmkernel.host_state import (
    CLEAR_PERCENT,
    HARD_PERCENT,
    SOFT_PERCENT,
    HostStateMachine,
    minimum_free_pages,
)
from memvirt.vmkernel.options import MemoryOptions
from memvirt.vmkernel.samples import HostState

__all__ = [
    "CLEAR_PERCENT",
    "DEFLATE_PERCENT",
    "HARD_PERCENT",
    "PAGE_BYTES",
    "SOFT_PERCENT",
    "HostRules",
    "HostState",
    "MemoryOptions",
    "VmSettings",
    "revoke",
    "weights",
]


@dataclass(frozen=True)
class HostRules:
    """The VMkernel's rules for a host that manages ``managed`` pages of machine memory."""

    managed: int
    options: MemoryOptions

    @property
    def min_free(self) -> int:
        """Minimum free memory, in pages."""
        return minimum_free_pages(self.managed, self.options.min_free_pct)

    def states(self) -> HostStateMachine:
        """A state machine of such a host, in state high."""
        return HostStateMachine(self.min_free, self.options.high_pct)

    def border(self, percent: float) -> int:
        """Pages that ``percent`` of minimum free memory are."""
        return self.states().border(percent)

    @property
    def high_border(self) -> int:
        """Free pages below which a host leaves state high: large pages are broken and shared."""
        return self.border(self.options.high_pct)

    def balloon_max(self, memory: float) -> float:
        """Most pages a balloon takes of a VM of ``memory`` pages."""
        return int(memory * self.options.ctl_max_percent / 100)

    def cache_max(self, memory: float) -> float:
        """Most frames the compression cache of a VM of ``memory`` pages takes."""
        if not self.options.mem_zip_enable:
            return 0
        return int(memory * self.options.mem_zip_max_pct / 100)

    def refusals(self, vms: Iterable[tuple[VmSettings, float]]) -> dict[str, str]:
        """VMs (with their overhead) that admission control refuses, in that order, and why."""
        admission = Admission(self.managed - self.min_free, None)
        refused = {}
        for settings, overhead in vms:
            try:
                admission.admit(settings, int(overhead))
            except AdmissionError as error:
                refused[settings.name] = str(error)
        return refused

    def reservable(self) -> int:
        """Pages that reservations and overhead of all VMs may take together."""
        return self.managed - self.min_free
