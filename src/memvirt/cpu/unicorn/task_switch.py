# SPDX-License-Identifier: Apache-2.0
"""Delivery of an event through a task gate: a task switch (Intel SDM vol. 3A section 8.3).

All memory is read and written before a register changes: what is written twice because the VMM had
to act in between is the same both times, and the new task is marked busy last. 32-bit TSSs only;
the new task's segments lie in the GDT, are not checked beyond that, and it must not run in
virtual-8086 mode. What goes wrong is raised in the old task.
"""

from __future__ import annotations

from memvirt.address import GuestVirtualAddress
from memvirt.compiled import compiled
from memvirt.mmu.access import OK
from memvirt.mmu.entry import CR0_PG
from memvirt.mmu.native import load32, load64, store32, store64

from . import registers as reg
from .engine_state import FRAME, TASK, EngineState, mmu_of
from .events import VECTOR_GP, VECTOR_NP, VECTOR_TS, memory_status, nested_fault
from .gates import descriptor_base, descriptor_limit, read_descriptor
from .guest_memory import read_guest, write_guest
from .segments import read_flags, set_code_segment, set_segment, write_flags

# Offsets in a TSS (figure 8-2), and the registers in its order.
_LINK, _CR3, _EIP, _ES, _LDT, _TSS_BYTES = 0x00, 0x1C, 0x20, 0x48, 0x60, 0x68
_STATE_BYTES = _LDT - _EIP  # what a switch saves: EIP to GS
_GENERAL = (reg.RAX, reg.RCX, reg.RDX, reg.RBX, reg.RSP, reg.RBP, reg.RSI, reg.RDI)
_SEGMENTS = (reg.ES, reg.CS, reg.SS, reg.DS, reg.FS, reg.GS)
_CS_INDEX, _SS_INDEX, _LDT_INDEX = 1, 2, 6
_AVAILABLE, _BUSY = 9, 1 << 9  # type; the bit of the second word that makes it busy
_NESTED_TASK, _TASK_SWITCHED, _HF_TS = 1 << 14, 1 << 3, 1 << 11
_U32 = 0xFFFF_FFFF


@compiled
def _save_task(engine: EngineState) -> int:
    """Write the present task's registers to its TSS; OK or a status."""
    state, at = engine.registers_at, engine.state_at + FRAME
    tr = state + reg.TR
    store32(at, load64(state + reg.RIP))
    store32(at + 4, read_flags(engine))
    for index in range(8):
        store32(at + 8 + 4 * index, load64(state + _GENERAL[index]))
    for index in range(6):
        store32(at + 40 + 4 * index, load32(state + _SEGMENTS[index]))
    if load32(tr + reg.SEGMENT_LIMIT) < _TSS_BYTES - 1:
        return int(nested_fault(engine, VECTOR_TS, load32(tr) & 0xFFFC))
    gva = GuestVirtualAddress((load64(tr + reg.SEGMENT_BASE) + _EIP) & _U32)
    status = write_guest(engine, gva, at, _STATE_BYTES)
    return OK if status == OK else int(memory_status(engine, status))


@compiled
def _read_segments(engine: EngineState) -> int:
    """Read the new task's descriptors, LDTR's first, to ``task_segments``; OK or a status."""
    for step in range(7):
        index = _LDT_INDEX if step == 0 else step - 1
        selector = load32(engine.state_at + TASK + (_LDT if step == 0 else _ES + 4 * index))
        selector &= 0xFFFF
        engine.task_segments[index] = 0
        if selector & 4:
            return int(nested_fault(engine, VECTOR_TS, selector & 0xFFFC))
        if selector & 0xFFFC == 0:
            if index == _CS_INDEX or index == _SS_INDEX:
                return int(nested_fault(engine, VECTOR_TS, 0))
            continue
        status = read_descriptor(engine, selector)
        if status == -1:
            return int(nested_fault(engine, VECTOR_TS, selector & 0xFFFC))
        if status != OK:
            return int(memory_status(engine, status))
        engine.task_segments[index] = engine.descriptor
    return OK


@compiled
def _push_error(engine: EngineState) -> int:
    """Push the event's error code on the new task's stack; OK or a status."""
    esp_at = engine.state_at + TASK + _EIP + 8 + 4 * 4
    stack = engine.task_segments[_SS_INDEX]
    mask = _U32 if stack >> 32 & (1 << 22) else 0xFFFF
    esp = load32(esp_at)
    new = (esp - 4) & mask
    engine.frame[0] = engine.event_error
    gva = GuestVirtualAddress((descriptor_base(stack) + new) & _U32)
    status = write_guest(engine, gva, engine.state_at + FRAME, 4)
    if status != OK:
        return int(memory_status(engine, status))
    store32(esp_at, esp & ~mask | new)
    return OK


@compiled
def _enter_task(engine: EngineState) -> None:
    """Load the registers of the task read to ``task``."""
    state, task = engine.registers_at, engine.state_at + TASK
    for index in range(8):
        store64(state + _GENERAL[index], load32(task + _EIP + 8 + 4 * index))
    set_segment(engine, reg.LDTR, load32(task + _LDT) & 0xFFFF, 0, 0, 0)
    if engine.task_segments[_LDT_INDEX] != 0:
        low = engine.task_segments[_LDT_INDEX]
        base, limit = descriptor_base(low), descriptor_limit(low)
        set_segment(engine, reg.LDTR, load32(task + _LDT) & 0xFFFF, base, limit, low >> 32 & _U32)
    for index in range(6):
        selector, descriptor = load32(task + _ES + 4 * index) & 0xFFFF, engine.task_segments[index]
        base, limit, flags = 0, 0, 0
        if descriptor != 0:
            base, limit = descriptor_base(descriptor), descriptor_limit(descriptor)
            flags = descriptor >> 32 & _U32
        set_segment(engine, _SEGMENTS[index], selector, base, limit, flags)
    selector, descriptor = load32(task + _ES + 4) & 0xFFFF, engine.task_segments[_CS_INDEX]
    base, limit = descriptor_base(descriptor), descriptor_limit(descriptor)
    set_code_segment(engine, selector, base, limit, descriptor >> 32 & _U32, selector & 3)
    write_flags(engine, load32(task + _EIP + 4) | _NESTED_TASK)
    store64(state + reg.RIP, load32(task + _EIP))
    store64(state + reg.CR0, load64(state + reg.CR0) | _TASK_SWITCHED)
    store32(state + reg.HFLAGS, load32(state + reg.HFLAGS) | _HF_TS)
    if load64(state + reg.CR0) & CR0_PG:
        store64(state + reg.CR3, load32(task + _CR3))
        engine.flush_owed = 1


@compiled
def _write_word(engine: EngineState, gva: int, value: int, size: int) -> int:
    engine.frame[0] = value
    address = GuestVirtualAddress(gva & _U32)
    status = write_guest(engine, address, engine.state_at + FRAME, size)
    return OK if status == OK else int(memory_status(engine, status))


@compiled
def _prepare(engine: EngineState, tss_base: int, busy_gva: int, high: int) -> int:
    """All of a switch that can fail: OK, or a status with no register changed."""
    mmu, tr = mmu_of(engine), engine.registers_at + reg.TR
    gva = GuestVirtualAddress(tss_base)
    status = read_guest(engine, gva, engine.state_at + TASK, _TSS_BYTES)
    if status != OK:
        return int(memory_status(engine, status))
    status = _save_task(engine)
    if status != OK:
        return int(status)
    if mmu.cr0 & CR0_PG:
        mmu.cr3 = load32(engine.state_at + TASK + _CR3)  # until ``load_control`` reads it again
    status = _read_segments(engine)
    if status == OK and engine.event_has_error:
        status = _push_error(engine)
    if status == OK:
        status = _write_word(engine, tss_base + _LINK, load32(tr), 2)
    if status == OK:
        status = _write_word(engine, busy_gva, high | _BUSY, 4)
    return int(status)


@compiled
def switch_task(engine: EngineState, external: int) -> int:
    """Switch to the task of the gate in ``gate_low``; as ``deliver_event``."""
    selector = (engine.gate_low >> 16) & 0xFFFF
    code = selector & 0xFFFC | external
    status = -1 if selector & 4 else read_descriptor(engine, selector)
    if status == -1:
        return int(nested_fault(engine, VECTOR_GP, code))
    if status != OK:
        return int(memory_status(engine, status))
    high = (engine.descriptor >> 32) & _U32
    base, limit = descriptor_base(engine.descriptor), descriptor_limit(engine.descriptor)
    if high >> 8 & 0x1F != _AVAILABLE:
        return int(nested_fault(engine, VECTOR_GP, code))
    if high & (1 << 15) == 0:
        return int(nested_fault(engine, VECTOR_NP, code))
    if limit < _TSS_BYTES - 1:
        return int(nested_fault(engine, VECTOR_TS, code))
    busy_gva = load64(engine.registers_at + reg.GDTR + reg.SEGMENT_BASE) + (selector & 0xFFF8) + 4
    status = _prepare(engine, base, busy_gva, high)
    if status != OK:
        return int(status)
    _enter_task(engine)
    set_segment(engine, reg.TR, selector, base, limit, high | _BUSY)
    return OK
