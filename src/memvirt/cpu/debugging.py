# SPDX-License-Identifier: Apache-2.0
"""How a debugger outside the guest stops a processor: what any processor that can be debugged does.

The guest can see none of it: no byte of its memory and none of its registers is used for it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from memvirt.address import GuestVirtualAddress

__all__ = ["DebugStop", "ProcessorDebugging", "StopKind", "Watchpoint"]


class StopKind(Enum):
    """Why a processor stopped for its debugger."""

    STEP = "one instruction has been executed"
    BREAKPOINT = "the instruction at a breakpoint comes next"
    READ = "watched bytes have been loaded"
    WRITE = "watched bytes have been stored to"


@dataclass(frozen=True, slots=True)
class DebugStop:
    """One stop. ``gva`` is the breakpoint, or the first watched byte that was accessed."""

    kind: StopKind
    gva: GuestVirtualAddress


@dataclass(frozen=True, slots=True)
class Watchpoint:
    """``size`` bytes (1, 2, 4 or 8, naturally aligned) from ``gva`` on, in any address space."""

    gva: GuestVirtualAddress
    size: int
    reads: bool
    writes: bool


class ProcessorDebugging(Protocol):
    """A processor's debugging. All of it is called while the processor is stopped.

    The processor stops with ``ExitReason.DEBUG``. Breakpoints are for linear addresses, whatever
    the address space, and stop before the instruction; watchpoints stop behind it.
    """

    @property
    def has_watchpoints(self) -> bool:
        """False if ``set_watchpoints`` cannot do anything but raise."""
        ...

    def set_breakpoints(self, gvas: Collection[GuestVirtualAddress]) -> None:
        """Make these all the breakpoints there are."""
        ...

    def set_watchpoints(self, watchpoints: Collection[Watchpoint]) -> None:
        """Make these all the watchpoints there are. Raises ProcessorError if it cannot."""
        ...

    def step(self) -> None:
        """Let the next run end after one instruction, whatever breakpoints there are.

        External interrupts wait meanwhile, unless the processor is halted. An instruction that
        faults ends at the first instruction of the handler.
        """
        ...

    def continue_(self) -> None:
        """Let the next runs go on to a breakpoint or a watchpoint: ``step`` is taken back."""
        ...

    def get(self, name: str) -> int:
        """A register that ``Processor.get`` does not know: fs_base, gs_base, kernel_gs_base,
        xmm0 to xmm15 (128 bits), mxcsr, st0 to st7 (80 bits), fctrl, fstat, ftag."""
        ...

    def set(self, name: str, value: int) -> None:
        """Set a register that ``get`` knows."""
        ...
