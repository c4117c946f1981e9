# SPDX-License-Identifier: Apache-2.0
"""How a virtual machine's run ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from memvirt.notebook import one_line


class EndReason(Enum):
    """Why a virtual machine stopped."""

    SUCCESS = "the guest reports success"
    FAILURE = "the guest reports failure"
    POWER_OFF = "the guest powered off"
    RESET = "the guest asked for a reset"
    PANIC = "the guest's kernel panicked"
    TRIPLE_FAULT = "triple fault"
    NO_FIRMWARE = "the guest needs a BIOS"
    HALTED = "the guest halted with nothing left to wake it"
    OUT_OF_MEMORY = "machine memory is exhausted"
    PAGE_LOST = "a page could not be brought back"
    MISCONFIGURED = "a nested page table is corrupt"
    ENGINE_ERROR = "the processor engine failed"
    INTERNAL_ERROR = "an error inside memvirt"
    TIMEOUT = "timeout"
    STOPPED = "stopped by the user"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. ``exit_value`` is what the guest wrote to the debug-exit port, if it did."""

    reason: EndReason
    exit_value: int | None
    detail: str
    virtual_seconds: float
    host_seconds: float

    def __repr__(self) -> str:
        detail = f" ({one_line(self.detail)})" if self.detail else ""
        return (
            f"<Outcome {self.reason.name}: {self.reason.value}{detail}; "
            f"{self.virtual_seconds:.3f} s of virtual time, {self.host_seconds:.3f} s of the host>"
        )

    @property
    def succeeded(self) -> bool:
        """True if the guest ended its run itself and reported no failure."""
        return self.reason in (EndReason.SUCCESS, EndReason.POWER_OFF)

    @property
    def exit_status(self) -> int:
        """As a process exit status: 0 success, 1 failure, 3 the VM died, 124 timeout."""
        if self.succeeded:
            return 0
        if self.reason is EndReason.TIMEOUT:
            return 124
        if self.reason is EndReason.STOPPED:
            return 130
        failed = (EndReason.FAILURE, EndReason.RESET, EndReason.PANIC)
        return 1 if self.reason in failed else 3
