# SPDX-License-Identifier: Apache-2.0
"""The pending event: how exceptions are raised, also while another is delivered.

Double and triple faults follow Intel SDM vol. 3A section 6.15, table 6-5. What began a chain of
them is kept (``chain_vector`` and its like), because only that says what went wrong.
"""

from __future__ import annotations

from memvirt.address import GuestVirtualAddress
from memvirt.compiled import compiled
from memvirt.mmu.access import NOT_CANONICAL, OK, PROCESSOR_STATUSES, TRUE_FAULT
from memvirt.mmu.native import load32, load64, store64

from . import registers as reg
from .engine_state import INSTRUCTION, EngineState, mmu_of, vmm_of
from .guest_memory import fetch_guest
from .segments import load_control

VECTOR_DB, VECTOR_NMI = 1, 2
VECTOR_UD, VECTOR_DF, VECTOR_TS, VECTOR_NP, VECTOR_SS, VECTOR_GP, VECTOR_PF = (
    6,
    8,
    10,
    11,
    12,
    13,
    14,
)
TRIPLE_FAULT = PROCESSOR_STATUSES + 1  # statuses beside those of mmu.access
NO_FIRMWARE = PROCESSOR_STATUSES + 2  # real mode, and the guest has not set this vector

_U32 = 0xFFFF_FFFF


@compiled
def _has_error_code(vector: int) -> bool:
    return vector == 8 or 10 <= vector <= 14 or vector == 17


@compiled
def raise_event(engine: EngineState, vector: int, error: int) -> None:
    """Make exception ``vector`` the pending event."""
    engine.event_vector = vector
    engine.event_error = error
    engine.event_has_error = _has_error_code(vector)
    engine.event_is_software = 0
    engine.event_is_interrupt = 0


@compiled
def _contributory(vector: int) -> bool:
    return vector == 0 or 10 <= vector <= 13


@compiled
def raise_software_event(engine: EngineState, vector: int) -> None:
    """Make the ``int`` instruction that has just been executed (RIP is past it) the pending event.

    ``int n`` has two bytes, ``int3``, ``int1`` and ``into`` one. Which it was is looked up now,
    while the instruction is where the processor has fetched it: its delivery may wait for the host,
    which may take the page away.
    """
    raise_event(engine, vector, 0)
    engine.event_has_error = 0
    engine.event_is_software = 1
    engine.event_instruction_bytes = 1
    load_control(engine)
    start = load64(engine.registers_at + reg.RIP) - 2
    if load32(engine.registers_at + reg.HFLAGS) & reg.HF_CS64 == 0:
        start = (start + load64(engine.registers_at + reg.CS + reg.SEGMENT_BASE)) & _U32
    vmm = vmm_of(engine)
    walks, references = vmm.walks, vmm.mmu.walk_references  # a processor has no need to look again
    if fetch_guest(engine, GuestVirtualAddress(start), engine.state_at + INSTRUCTION, 2) == OK:
        if engine.instruction & 0xFFFF == 0xCD | vector << 8:
            engine.event_instruction_bytes = 2
    vmm.walks, vmm.mmu.walk_references = walks, references
    engine.translation_status = OK


@compiled
def _step_back(engine: EngineState) -> None:
    """Make RIP point at the ``int`` instruction again: one that faults has not been executed."""
    at = engine.registers_at + reg.RIP
    store64(at, load64(at) - engine.event_instruction_bytes)


@compiled
def nested_fault(engine: EngineState, vector: int, error: int) -> int:
    """An exception during the delivery of the pending event (SDM table 6-5)."""
    first = engine.event_vector
    if engine.event_is_software:
        _step_back(engine)
    if engine.chain_length == 0:
        engine.chain_vector, engine.chain_error = first, engine.event_error
        engine.chain_gva = engine.event_gva
        engine.chain_rip = load64(engine.registers_at + reg.RIP)
    if engine.chain_length == 0 or first != VECTOR_DF:
        engine.chain_second, engine.chain_second_error = vector, error
    engine.chain_length += 1
    benign = engine.event_is_interrupt != 0 or engine.event_is_software != 0
    if not benign:
        if first == VECTOR_DF:
            return TRIPLE_FAULT
        page_then = first == VECTOR_PF and (vector == VECTOR_PF or _contributory(vector))
        if page_then or (_contributory(first) and _contributory(vector)):
            raise_event(engine, VECTOR_DF, 0)
            return TRUE_FAULT
    raise_event(engine, vector, error)
    return TRUE_FAULT


@compiled
def memory_status(engine: EngineState, status: int) -> int:
    """Turn the status of a guest memory access during delivery into the next step."""
    mmu = mmu_of(engine)
    if status == TRUE_FAULT:
        store64(engine.registers_at + reg.CR2, engine.fault_gva)
        return int(nested_fault(engine, VECTOR_PF, mmu.fault_error))
    if status == NOT_CANONICAL:
        return int(nested_fault(engine, VECTOR_GP, 0))
    return status
