# SPDX-License-Identifier: Apache-2.0
"""Delivery of exceptions and interrupts through the guest's IDT, and the ``syscall`` instruction.

Unicorn calls back at an exception and does nothing else. Here the event is delivered as the
processor would: gate, code segment, stack switch by TSS or IST, frame, error code, flags (Intel SDM
vol. 3A sections 6.12 to 6.14; double and triple faults 6.15, table 6-5). A delivery changes nothing
until all its memory is within reach, so it can be tried again after the VMM has acted.
"""

from __future__ import annotations

from unicorn import x86_const

from memvirt.address import GuestVirtualAddress
from memvirt.compiled import compiled
from memvirt.mmu.access import OK
from memvirt.mmu.entry import CR0_PE, EFER_LMA, EFER_SCE
from memvirt.mmu.native import call_c3, load32, load64, store64

from . import registers as reg
from .deliver_protected import deliver_protected
from .deliver_real import deliver_real
from .engine_state import (
    FLAGS_WORD,
    FRAME,
    NO_EVENT,
    STACK_POINTER,
    EngineState,
    mmu_of,
)
from .events import (
    VECTOR_DB,
    VECTOR_TS,
    VECTOR_UD,
    memory_status,
    nested_fault,
    raise_event,
)
from .gates import enter_handler, read_gate
from .guest_memory import read_guest, write_guest
from .segments import load_control, read_flags, set_code_segment, set_segment, write_flags

_CS, _SS, _TR, _IDT, _GDT, _LDT = reg.CS, reg.SS, reg.TR, reg.IDTR, reg.GDTR, reg.LDTR
_BASE, _LIMIT = reg.SEGMENT_BASE, reg.SEGMENT_LIMIT
_RIP, _RSP, _HFLAGS = reg.RIP, reg.RSP, reg.HFLAGS
_RCX, _R11, _CR2 = reg.RCX, reg.R11, reg.CR2
_DR6_REGISTER, _DR6_BS = x86_const.UC_X86_REG_DR6, 1 << 14
_DATA_FLAGS = 0x00C09300  # flat, present, writable, accessed
_U32 = 0xFFFF_FFFF


@compiled
def _stack_pointer(engine: EngineState, cpl: int, new_cpl: int) -> int:
    """The stack pointer for a 64-bit frame to ``stack_pointer``; OK or a status."""
    interrupt_stack = (engine.gate_low >> 32) & 7
    if interrupt_stack == 0 and new_cpl == cpl:
        engine.stack_pointer = load64(engine.registers_at + _RSP) & ~15
        return OK
    offset = 0x1C + 8 * interrupt_stack if interrupt_stack else 4 + 8 * new_cpl
    if offset + 7 > load32(engine.registers_at + _TR + _LIMIT):
        selector = load32(engine.registers_at + _TR) & 0xFFFC
        return int(nested_fault(engine, VECTOR_TS, selector))
    gva = GuestVirtualAddress(load64(engine.registers_at + _TR + _BASE) + offset)
    status = read_guest(engine, gva, engine.state_at + STACK_POINTER, 8)
    if status != OK:
        return int(memory_status(engine, status))
    engine.stack_pointer &= ~15
    return OK


@compiled
def _deliver_long(engine: EngineState, cpl: int, external: int) -> int:
    status = read_gate(engine, True, external)
    if status != OK:
        return int(status)
    segment_flags = (engine.descriptor >> 32) & _U32
    conforming = segment_flags & (1 << 10) != 0
    new_cpl = cpl if conforming else (segment_flags >> 13) & 3
    status = _stack_pointer(engine, cpl, new_cpl)
    if status != OK:
        return int(status)
    rsp = engine.stack_pointer
    flags = read_flags(engine)
    words = 0
    if engine.event_has_error:
        engine.frame[0] = engine.event_error
        words = 1
    engine.frame[words] = load64(engine.registers_at + _RIP)
    engine.frame[words + 1] = load32(engine.registers_at + _CS)
    pushed = flags
    if not engine.event_is_interrupt and not engine.event_is_software:
        pushed |= 1 << 16  # RF: the faulting instruction will be tried again
    if _is_trap(engine):
        pushed = flags
    engine.frame[words + 2] = pushed
    engine.frame[words + 3] = load64(engine.registers_at + _RSP)
    engine.frame[words + 4] = load32(engine.registers_at + _SS)
    size = (words + 5) * 8
    status = write_guest(engine, GuestVirtualAddress(rsp - size), engine.state_at + FRAME, size)
    if status != OK:
        return int(memory_status(engine, status))
    low, high = engine.gate_low, engine.gate_high
    rip = (low & 0xFFFF) | ((low >> 48) & 0xFFFF) << 16 | (high & _U32) << 32
    if new_cpl != cpl:
        set_segment(engine, _SS, new_cpl, 0, 0, new_cpl << 13)
    store64(engine.registers_at + _RSP, rsp - size)
    enter_handler(engine, flags, rip, new_cpl, segment_flags)
    return OK


@compiled
def _is_trap(engine: EngineState) -> bool:
    """#DB, #BP and #OF are reported after their instruction."""
    return engine.event_vector == 1 or engine.event_vector == 3 or engine.event_vector == 4


@compiled
def deliver_event(engine: EngineState) -> int:
    """Deliver the pending event.

    OK: done. TRUE_FAULT: another event took its place, deliver that. TRIPLE_FAULT: the VM is
    dead. Any other status of mmu.access: act on it and call again.
    """
    mmu = mmu_of(engine)
    load_control(engine)
    external = 0 if engine.event_is_software else 1
    if engine.event_is_interrupt == 0 and engine.event_is_software == 0:
        external = 1
    mmu.implicit_supervisor = 1
    if mmu.efer & EFER_LMA:
        status = _deliver_long(engine, mmu.cpl, external)
    elif mmu.cr0 & CR0_PE == 0:
        status = deliver_real(engine)
    else:
        status = deliver_protected(engine, mmu.cpl, external)
    mmu.implicit_supervisor = 0
    if status == OK:
        if engine.event_is_interrupt:
            engine.interrupts_delivered += 1
        else:
            engine.exceptions_delivered += 1
            engine.exceptions[engine.event_vector & 31] += 1
        engine.event_vector = NO_EVENT
        engine.chain_length = 0
    return int(status)


@compiled
def _forget_single_step(engine: EngineState) -> None:
    """Clear DR6.BS, which the engine has set for a trap that does not come."""
    at = engine.state_at + FLAGS_WORD
    call_c3(engine.reg_read_at, (engine.handle, _DR6_REGISTER, at))
    engine.flags_word &= ~_DR6_BS
    call_c3(engine.reg_write_at, (engine.handle, _DR6_REGISTER, at))


@compiled
def system_call(engine: EngineState) -> None:
    """``syscall`` (AMD64 APM vol. 3): RIP is past the instruction already.

    Single-stepping looks at RFLAGS.TF when the instruction is done: the trap comes only if
    IA32_FMASK has left TF set, and then before the handler's first instruction.
    """
    single_step = engine.stop_vector == VECTOR_DB
    mmu = mmu_of(engine)
    load_control(engine)
    state = engine.registers_at
    rip = load64(state + _RIP)
    if mmu.efer & EFER_SCE == 0:
        store64(state + _RIP, rip - 2)
        raise_event(engine, VECTOR_UD, 0)
        return
    flags = read_flags(engine)
    from_64bit = load32(state + _HFLAGS) & reg.HF_CS64 != 0
    if mmu.efer & EFER_LMA:
        store64(state + _RCX, rip)
        store64(state + _R11, flags & ~(1 << 16))
        write_flags(engine, flags & ~(load64(engine.fmask_at) & 0xFFFF_FFFF) & ~(1 << 16))
        target = load64(engine.lstar_at) if from_64bit else load64(engine.cstar_at)
    else:
        store64(state + _RCX, rip & 0xFFFF_FFFF)
        write_flags(engine, flags & ~(reg.RFLAGS_IF | 1 << 17 | 1 << 16))
        target = load64(engine.star_at) & 0xFFFF_FFFF
    selector = (load64(engine.star_at) >> 32) & 0xFFFC
    set_segment(engine, _SS, selector + 8, 0, 0xFFFF_FFFF, _DATA_FLAGS)
    wide = 1 << 21 if mmu.efer & EFER_LMA else 1 << 22
    set_code_segment(engine, selector, 0, 0xFFFF_FFFF, 0x00809B00 | wide, 0)
    store64(state + _RIP, target)
    if single_step:
        if read_flags(engine) & reg.RFLAGS_TF:
            raise_event(engine, VECTOR_DB, 0)
        else:
            _forget_single_step(engine)
