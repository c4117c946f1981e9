# SPDX-License-Identifier: Apache-2.0
"""Undoing an instruction from inside its own callback.

After a callback the engine goes on to the end of its block, whatever the callback found. To make
an instruction fault, or happen again later, the registers are saved as they were before it, and
the processor's translations are dropped: a further load or store in the block must ask for one,
and is refused, so it has no effect. The run loop then restores the registers.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from memvirt.mmu.native import call_c1, call_variadic2, copy_bytes

from . import registers as reg

_SAVED_BYTES = reg.HFLAGS  # general registers, RIP, flags and condition codes
_SAVED_AT = 256  # offset in the scratch area


@njit(nogil=True, cache=True)
def abort_instruction(vm: Any) -> None:
    """Stop the engine and leave no trace of the instruction whose callback this is."""
    copy_bytes(vm.scratch_at + _SAVED_AT, vm.registers_at, _SAVED_BYTES)
    call_variadic2(vm.ctl_at, (vm.engine, reg.CTL_TLB_FLUSH))
    call_c1(vm.emu_stop_at, (vm.engine,))
    vm.aborted = 1


@njit(nogil=True, cache=True)
def undo_aborted(vm: Any) -> None:
    """Put the registers back as they were before the aborted instruction."""
    copy_bytes(vm.registers_at, vm.scratch_at + _SAVED_AT, _SAVED_BYTES)
    vm.aborted = 0
