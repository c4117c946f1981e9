# SPDX-License-Identifier: Apache-2.0
"""Debugging from outside, the compiled part: when to stop, and whether it has come to that."""

from __future__ import annotations

from memvirt.address import GuestVirtualAddress
from memvirt.compiled import callback, compiled
from memvirt.mmu.native import call_c1, load64

from . import registers as reg
from .engine_state import EngineState, engine_at

# EngineState.step
NO_STEP = 0
STEP_ARMED = 1  # the next instruction may begin
STEP_BEGUN = 2  # it has begun: before the one after it, stop
STEP_DONE = 3


@compiled
def stopped_in_block(engine: EngineState) -> bool:
    """True if the engine has stopped because a debugger wants it."""
    return engine.at_breakpoint != 0 or engine.watch_kind != 0 or engine.step == STEP_DONE


@compiled
def stop_is_due(engine: EngineState) -> bool:
    """True if the run loop must leave for the debugger, between two instructions.

    A step is done, too, if RIP is elsewhere: a system call, an exception delivered, or an
    instruction that the host has completed.
    """
    if stopped_in_block(engine):
        return True
    return engine.step != NO_STEP and load64(engine.registers_at + reg.RIP) != engine.step_rip


@callback("void(int64, int64, int32, int64)")
def on_instruction(handle: int, gva: GuestVirtualAddress, size: int, user: int) -> None:
    """``UC_HOOK_CODE``: on breakpoints or, while stepping, on every instruction, never on both."""
    engine = engine_at(user)
    if engine.aborted:
        return
    if engine.step == STEP_ARMED:
        engine.step = STEP_BEGUN
        return
    if engine.step == STEP_BEGUN:
        engine.step = STEP_DONE
    elif engine.step == NO_STEP:
        engine.at_breakpoint = 1
    call_c1(engine.emu_stop_at, (handle,))
