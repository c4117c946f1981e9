# SPDX-License-Identifier: Apache-2.0
"""Gates of the IDT, and the descriptors they name (Intel SDM vol. 3A sections 6.11 and 6.14.1)."""

from __future__ import annotations

from memvirt.address import GuestVirtualAddress
from memvirt.compiled import compiled
from memvirt.mmu.access import OK
from memvirt.mmu.native import load32, load64, store64

from . import registers as reg
from .engine_state import DESCRIPTOR, GATE, EngineState, mmu_of
from .events import VECTOR_GP, VECTOR_NP, memory_status, nested_fault
from .guest_memory import read_guest
from .segments import set_code_segment, write_flags

# Type fields, with the S bit (table 3-2). Those of 16 bits and task gates are not in long mode.
TASK_GATE, INTERRUPT_GATE_16, TRAP_GATE_16, INTERRUPT_GATE, TRAP_GATE = 5, 6, 7, 0xE, 0xF

_IDT, _GDT, _LDT = reg.IDTR, reg.GDTR, reg.LDTR
_BASE, _LIMIT = reg.SEGMENT_BASE, reg.SEGMENT_LIMIT
_U32 = 0xFFFF_FFFF


@compiled
def read_descriptor(engine: EngineState, selector: int) -> int:
    """Read a descriptor to ``descriptor``; OK, or a status (an error code for #GP: -1 - code)."""
    table = _LDT if selector & 4 else _GDT
    offset = selector & 0xFFF8
    limit = load32(engine.registers_at + table + _LIMIT)
    if selector & 0xFFFC == 0 or offset + 7 > limit:
        return -1
    gva = GuestVirtualAddress(load64(engine.registers_at + table + _BASE) + offset)
    return int(read_guest(engine, gva, engine.state_at + DESCRIPTOR, 8))


@compiled
def read_gate(engine: EngineState, long_mode: bool, external: int) -> int:
    """Read and check the event's IDT gate and, but for a task gate, the descriptor of its code
    segment; OK or a status."""
    mmu = mmu_of(engine)
    vector, cpl = engine.event_vector, mmu.cpl
    size = 16 if long_mode else 8
    code = vector * 8 + 2 + external
    if vector * size + size - 1 > load32(engine.registers_at + _IDT + _LIMIT):
        return int(nested_fault(engine, VECTOR_GP, code))
    gva = GuestVirtualAddress(load64(engine.registers_at + _IDT + _BASE) + vector * size)
    status = read_guest(engine, gva, engine.state_at + GATE, size)
    if status != OK:
        return int(memory_status(engine, status))
    kind = (engine.gate_low >> 40) & 0xFF
    gate = kind & 0x1F
    known = gate == INTERRUPT_GATE or gate == TRAP_GATE
    if not long_mode:
        known = known or gate == INTERRUPT_GATE_16 or gate == TRAP_GATE_16 or gate == TASK_GATE
    if not known:
        return int(nested_fault(engine, VECTOR_GP, code))
    if engine.event_is_software and (kind >> 5) & 3 < cpl:
        return int(nested_fault(engine, VECTOR_GP, code))
    if kind & 0x80 == 0:
        return int(nested_fault(engine, VECTOR_NP, code))
    if gate == TASK_GATE:
        return OK
    selector = (engine.gate_low >> 16) & 0xFFFF
    status = read_descriptor(engine, selector)
    if status == -1:
        return int(nested_fault(engine, VECTOR_GP, (selector & 0xFFFC) + external))
    if status != OK:
        return int(memory_status(engine, status))
    flags = (engine.descriptor >> 32) & _U32
    dpl = (flags >> 13) & 3
    wrong = flags & (1 << 12) == 0 or flags & (1 << 11) == 0 or dpl > cpl
    if wrong or (long_mode and flags & (3 << 21) != 1 << 21):
        return int(nested_fault(engine, VECTOR_GP, (selector & 0xFFFC) + external))
    if flags & (1 << 15) == 0:
        return int(nested_fault(engine, VECTOR_NP, (selector & 0xFFFC) + external))
    return OK


@compiled
def descriptor_base(descriptor: int) -> int:
    """The base of a code or data segment, or of a 32-bit system segment."""
    low, high = descriptor & _U32, (descriptor >> 32) & _U32
    return (low >> 16) | (high & 0xFF) << 16 | (high & 0xFF00_0000)


@compiled
def descriptor_limit(descriptor: int) -> int:
    """The limit in bytes."""
    low, high = descriptor & _U32, (descriptor >> 32) & _U32
    limit = (low & 0xFFFF) | (high & 0xF0000)
    return limit << 12 | 0xFFF if high & (1 << 23) else limit


@compiled
def enter_handler(
    engine: EngineState, flags: int, rip: int, new_cpl: int, segment_flags: int
) -> None:
    """The last step of a delivery: flags, code segment, instruction pointer."""
    selector = (engine.gate_low >> 16) & 0xFFFF
    cleared = (1 << 8) | (1 << 14) | (1 << 16) | (1 << 17)  # TF, NT, RF, VM
    if (engine.gate_low >> 40) & 1 == 0:
        cleared |= reg.RFLAGS_IF
    write_flags(engine, flags & ~cleared)
    base, limit = descriptor_base(engine.descriptor), descriptor_limit(engine.descriptor)
    set_code_segment(engine, selector, base, limit, segment_flags, new_cpl)
    store64(engine.registers_at + reg.RIP, rip)
