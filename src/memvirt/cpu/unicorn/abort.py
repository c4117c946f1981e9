# SPDX-License-Identifier: Apache-2.0
"""Undoing an instruction from inside its own callback.

After a callback the engine goes on to the end of its block, whatever the callback found. To make
an instruction fault, or happen again later, the registers are saved as they were before it, and
the processor's translations are dropped: a further load or store in the block must ask for one,
and is refused, so it has no effect. The run loop then restores the registers.
"""

from __future__ import annotations

from memvirt.compiled import compiled
from memvirt.mmu.native import call_c1, call_variadic2, copy_bytes

from . import registers as reg
from .engine_state import SAVED_REGISTERS, EngineState

_SAVED_BYTES = reg.HFLAGS  # general registers, RIP, flags and condition codes


@compiled
def abort_instruction(engine: EngineState) -> None:
    """Stop the engine and leave no trace of the instruction whose callback this is."""
    copy_bytes(engine.state_at + SAVED_REGISTERS, engine.registers_at, _SAVED_BYTES)
    call_variadic2(engine.ctl_at, (engine.handle, reg.CTL_TLB_FLUSH))
    call_c1(engine.emu_stop_at, (engine.handle,))
    engine.aborted = 1


@compiled
def undo_aborted(engine: EngineState) -> None:
    """Put the registers back as they were before the aborted instruction."""
    copy_bytes(engine.registers_at, engine.state_at + SAVED_REGISTERS, _SAVED_BYTES)
    engine.aborted = 0
