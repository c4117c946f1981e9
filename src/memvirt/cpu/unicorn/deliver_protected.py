# SPDX-License-Identifier: Apache-2.0
"""Delivery of events in 32-bit protected mode, through gates of 32 and of 16 bits.

Intel SDM vol. 3A section 6.12.1; stacks of the TSS: 8.2.1 and 8.6. Task gates: ``task_switch``.
"""

from __future__ import annotations

from memvirt.address import GuestVirtualAddress
from memvirt.compiled import compiled
from memvirt.mmu.access import OK
from memvirt.mmu.native import load32, load64, store8, store32, store64

from . import registers as reg
from .engine_state import FRAME, STACK_POINTER, EngineState
from .events import VECTOR_TS, memory_status, nested_fault
from .gates import (
    TASK_GATE,
    descriptor_base,
    descriptor_limit,
    enter_handler,
    read_descriptor,
    read_gate,
)
from .guest_memory import read_guest, write_guest
from .segments import read_flags, set_segment
from .task_switch import switch_task

_U32 = 0xFFFF_FFFF
_DESCRIPTOR_BIG = 1 << 22  # D/B, in a descriptor's second word
_TSS_32 = 1 << 11  # of the type of a TSS: 32 bits


@compiled
def _store(at: int, value: int, width: int) -> None:
    if width == 4:
        store32(at, value)
    else:
        store8(at, value & 0xFF)
        store8(at + 1, value >> 8 & 0xFF)


@compiled
def _read_inner_stack(engine: EngineState, new_cpl: int, external: int) -> int:
    """SS and ESP for a privilege level from the TSS to ``stack_pointer`` (ESP, then SS); OK or a
    status."""
    tr = engine.registers_at + reg.TR
    wide = load32(tr + reg.SEGMENT_FLAGS) & _TSS_32 != 0
    offset = 4 + 8 * new_cpl if wide else 2 + 4 * new_cpl
    size = 6 if wide else 4
    if offset + size - 1 > load32(tr + reg.SEGMENT_LIMIT):
        selector = load32(tr) & 0xFFFC
        return int(nested_fault(engine, VECTOR_TS, selector | external))
    gva = GuestVirtualAddress((load64(tr + reg.SEGMENT_BASE) + offset) & _U32)
    engine.stack_pointer = 0
    status = read_guest(engine, gva, engine.state_at + STACK_POINTER, size)
    if status != OK:
        return int(memory_status(engine, status))
    if not wide:
        both = engine.stack_pointer
        engine.stack_pointer = both & 0xFFFF | (both >> 16 & 0xFFFF) << 32
    return OK


@compiled
def deliver_protected(engine: EngineState, cpl: int, external: int) -> int:
    """Deliver the pending event outside IA-32e mode; as ``deliver_event``."""
    status = read_gate(engine, False, external)
    if status != OK:
        return int(status)
    gate = (engine.gate_low >> 40) & 0x1F
    if gate == TASK_GATE:
        return int(switch_task(engine, external))
    width = 4 if gate & 8 else 2
    segment_flags = (engine.descriptor >> 32) & _U32
    code_descriptor = engine.descriptor
    new_cpl = cpl if segment_flags & (1 << 10) else (segment_flags >> 13) & 3
    state = engine.registers_at
    old_esp, old_ss = load64(state + reg.RSP) & _U32, load32(state + reg.SS)
    esp, stack_base = old_esp, load64(state + reg.SS + reg.SEGMENT_BASE)
    stack_flags = load32(state + reg.SS + reg.SEGMENT_FLAGS)
    stack_limit = load32(state + reg.SS + reg.SEGMENT_LIMIT)
    words = 3 + (1 if engine.event_has_error else 0)
    new_ss = old_ss
    if new_cpl != cpl:
        status = _read_inner_stack(engine, new_cpl, external)
        if status != OK:
            return int(status)
        esp, new_ss = engine.stack_pointer & _U32, (engine.stack_pointer >> 32) & 0xFFFF
        status = read_descriptor(engine, new_ss)
        if status == -1:
            return int(nested_fault(engine, VECTOR_TS, new_ss & 0xFFFC))
        if status != OK:
            return int(memory_status(engine, status))
        stack_flags = (engine.descriptor >> 32) & _U32
        stack_base = descriptor_base(engine.descriptor)
        stack_limit = descriptor_limit(engine.descriptor)
        engine.descriptor = code_descriptor
        words += 2
    flags = read_flags(engine)
    at = engine.state_at + FRAME
    if engine.event_has_error:
        _store(at, engine.event_error, width)
        at += width
    _store(at, load64(state + reg.RIP), width)
    _store(at + width, load32(state + reg.CS), width)
    _store(at + 2 * width, flags, width)
    _store(at + 3 * width, old_esp, width)
    _store(at + 4 * width, old_ss, width)
    stack_mask = _U32 if stack_flags & _DESCRIPTOR_BIG else 0xFFFF
    new_esp = (esp - words * width) & stack_mask
    gva = GuestVirtualAddress((stack_base + new_esp) & _U32)
    status = write_guest(engine, gva, engine.state_at + FRAME, words * width)
    if status != OK:
        return int(memory_status(engine, status))
    if new_cpl != cpl:
        set_segment(engine, reg.SS, new_ss, stack_base, stack_limit, stack_flags)
    store64(state + reg.RSP, esp & ~stack_mask | new_esp)
    low = engine.gate_low
    eip = low & 0xFFFF
    if width == 4:
        eip |= ((low >> 48) & 0xFFFF) << 16
    enter_handler(engine, flags, eip, new_cpl, segment_flags)
    return OK
