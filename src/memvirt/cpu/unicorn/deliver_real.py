# SPDX-License-Identifier: Apache-2.0
"""Delivery of events in real mode."""

from __future__ import annotations

from memvirt.address import GuestVirtualAddress
from memvirt.compiled import compiled
from memvirt.mmu.access import OK
from memvirt.mmu.native import load32, load64, store32, store64

from . import registers as reg
from .engine_state import FRAME, GATE, EngineState
from .events import NO_FIRMWARE, VECTOR_GP, memory_status, nested_fault
from .guest_memory import read_guest, write_guest
from .segments import read_flags, set_segment, write_flags

_U32 = 0xFFFF_FFFF


@compiled
def deliver_real(engine: EngineState) -> int:
    """Delivery in real mode, through the interrupt vector table (SDM vol. 3A section 21.1.4).

    A vector of 0000:0000 is one that neither the guest nor a firmware has set: NO_FIRMWARE.
    """
    state, vector = engine.registers_at, engine.event_vector
    if vector * 4 + 3 > load32(state + reg.IDTR + reg.SEGMENT_LIMIT):
        return int(nested_fault(engine, VECTOR_GP, 0))
    gate_at = engine.state_at + GATE
    gva = GuestVirtualAddress(load64(state + reg.IDTR + reg.SEGMENT_BASE) + vector * 4)
    status = read_guest(engine, gva, gate_at, 4)
    if status != OK:
        return int(memory_status(engine, status))
    target = engine.gate_low & _U32
    if target == 0:
        return NO_FIRMWARE
    flags = read_flags(engine)
    at = engine.state_at + FRAME
    words = load64(state + reg.RIP) & 0xFFFF | (load32(state + reg.CS) & 0xFFFF) << 16
    store64(at, words | (flags & 0xFFFF) << 32)
    rsp = load64(state + reg.RSP)
    stack = (rsp - 6) & 0xFFFF
    base = load64(state + reg.SS + reg.SEGMENT_BASE)
    status = write_guest(engine, GuestVirtualAddress((base + stack) & _U32), at, 6)
    if status != OK:
        return int(memory_status(engine, status))
    store64(state + reg.RSP, rsp & ~0xFFFF | stack)
    write_flags(engine, flags & ~(reg.RFLAGS_TF | reg.RFLAGS_IF | 1 << 16 | reg.RFLAGS_AC))
    selector = target >> 16
    set_segment(engine, reg.CS, selector, selector << 4, 0xFFFF, 0x9B00)
    hidden = load32(state + reg.HFLAGS) & ~(reg.HF_CS32 | reg.HF_CPL_MASK | reg.HF_INHIBIT_IRQ)
    store32(state + reg.HFLAGS, hidden | reg.HF_ADDSEG)
    store64(state + reg.RIP, target & 0xFFFF)
    return OK
