# SPDX-License-Identifier: Apache-2.0
"""Delivery of exceptions and interrupts through the guest's IDT, and the ``syscall`` instruction.

Unicorn calls back at an exception and does nothing else. Here the event is delivered as the
processor would: gate, code segment, stack switch by TSS or IST, frame, error code, flags (Intel SDM
vol. 3A sections 6.12 to 6.14; double and triple faults 6.15, table 6-5). A delivery changes nothing
until all its memory is within reach, so it can be tried again after the VMM has acted.
"""

from __future__ import annotations

from typing import Any

from numba import njit
from unicorn import x86_const

from memvirt.mmu.control import NOT_CANONICAL, OK, TRUE_FAULT
from memvirt.mmu.entry import EFER_LMA, EFER_SCE
from memvirt.mmu.native import (
    call_c3,
    load8,
    load32,
    load64,
    store32,
    store64,
)

from . import registers as reg
from .guest_memory import fetch_guest, read_guest, write_guest

VECTOR_DB = 1
VECTOR_UD, VECTOR_DF, VECTOR_TS, VECTOR_NP, VECTOR_SS, VECTOR_GP, VECTOR_PF = (
    6,
    8,
    10,
    11,
    12,
    13,
    14,
)
TRIPLE_FAULT = 16  # a status beside those of mmu.control

_CS, _SS, _TR, _IDT, _GDT, _LDT = reg.CS, reg.SS, reg.TR, reg.IDTR, reg.GDTR, reg.LDTR
_BASE, _LIMIT, _FLAGS = reg.SEGMENT_BASE, reg.SEGMENT_LIMIT, reg.SEGMENT_FLAGS
_RIP, _RSP, _HFLAGS = reg.RIP, reg.RSP, reg.HFLAGS
_RCX, _R11, _CR2 = reg.RCX, reg.R11, reg.CR2
_DR6_REGISTER, _DR6_BS = x86_const.UC_X86_REG_DR6, 1 << 14
_DATA_FLAGS = 0x00C09300  # flat, present, writable, accessed


@njit(nogil=True, cache=True)
def _has_error_code(vector: int) -> bool:
    return vector == 8 or 10 <= vector <= 14 or vector == 17


@njit(nogil=True, cache=True)
def raise_event(vm: Any, vector: int, error: int) -> None:
    """Make exception ``vector`` the pending event."""
    vm.event_vector = vector
    vm.event_error = error
    vm.event_has_error = _has_error_code(vector)
    vm.event_is_software = 0
    vm.event_is_interrupt = 0


@njit(nogil=True, cache=True)
def _contributory(vector: int) -> bool:
    return vector == 0 or 10 <= vector <= 13


@njit(nogil=True, cache=True)
def raise_software_event(vm: Any, vector: int) -> None:
    """Make the ``int`` instruction that has just been executed (RIP is past it) the pending event.

    ``int n`` has two bytes, ``int3``, ``int1`` and ``into`` one. Which it was is looked up now,
    while the instruction is where the processor has fetched it: its delivery may wait for the host,
    which may take the page away.
    """
    raise_event(vm, vector, 0)
    vm.event_has_error = 0
    vm.event_is_software = 1
    vm.event_instruction_bytes = 1
    load_control(vm)
    start = load64(vm.registers_at + _RIP) - 2
    if load32(vm.registers_at + _HFLAGS) & reg.HF_CS64 == 0:
        start = (start + load64(vm.registers_at + _CS + _BASE)) & 0xFFFF_FFFF
    walks, references = vm.walks, vm.walk_references  # a processor has no need to look again
    if fetch_guest(vm, start, vm.scratch_at + 240, 2) == OK:
        if load8(vm.scratch_at + 240) == 0xCD and load8(vm.scratch_at + 241) == vector:
            vm.event_instruction_bytes = 2
    vm.walks, vm.walk_references = walks, references
    vm.translation_status = OK


@njit(nogil=True, cache=True)
def _step_back(vm: Any) -> None:
    """Make RIP point at the ``int`` instruction again: one that faults has not been executed."""
    at = vm.registers_at + _RIP
    store64(at, load64(at) - vm.event_instruction_bytes)


@njit(nogil=True, cache=True)
def _nested_fault(vm: Any, vector: int, error: int) -> int:
    """An exception during the delivery of the pending event (SDM table 6-5)."""
    first = vm.event_vector
    if vm.event_is_software:
        _step_back(vm)
    benign = vm.event_is_interrupt != 0 or vm.event_is_software != 0
    if not benign:
        if first == VECTOR_DF:
            return TRIPLE_FAULT
        page_then = first == VECTOR_PF and (vector == VECTOR_PF or _contributory(vector))
        if page_then or (_contributory(first) and _contributory(vector)):
            raise_event(vm, VECTOR_DF, 0)
            return TRUE_FAULT
    raise_event(vm, vector, error)
    return TRUE_FAULT


@njit(nogil=True, cache=True)
def memory_status(vm: Any, status: int) -> int:
    """Turn the status of a guest memory access during delivery into the next step."""
    if status == TRUE_FAULT:
        store64(vm.registers_at + _CR2, vm.fault_gva)
        return int(_nested_fault(vm, VECTOR_PF, vm.fault_error))
    if status == NOT_CANONICAL:
        return int(_nested_fault(vm, VECTOR_GP, 0))
    return status


@njit(nogil=True, cache=True)
def read_flags(vm: Any) -> int:
    """RFLAGS, condition codes included."""
    call_c3(vm.reg_read_at, (vm.engine, vm.rflags_register, vm.scratch_at + 248))
    return load64(vm.scratch_at + 248)


@njit(nogil=True, cache=True)
def write_flags(vm: Any, flags: int) -> None:
    store64(vm.scratch_at + 248, flags | 2)
    call_c3(vm.reg_write_at, (vm.engine, vm.rflags_register, vm.scratch_at + 248))


@njit(nogil=True, cache=True)
def _set_segment(vm: Any, at: int, selector: int, base: int, limit: int, flags: int) -> None:
    segment = vm.registers_at + at
    store32(segment, selector)
    store64(segment + _BASE, base)
    store32(segment + _LIMIT, limit)
    store32(segment + _FLAGS, flags)


@njit(nogil=True, cache=True)
def set_code_segment(vm: Any, selector: int, base: int, limit: int, flags: int, cpl: int) -> None:
    """Load CS with a descriptor's content and set what the translator derives from it.

    ``flags`` is the descriptor's second word. Bit 21 (L) makes a 64-bit segment in long mode.
    """
    _set_segment(vm, _CS, (selector & ~3) | cpl, base, limit, flags)
    hidden = load32(vm.registers_at + _HFLAGS)
    hidden &= ~(reg.HF_CPL_MASK | reg.HF_CS32 | reg.HF_CS64 | reg.HF_ADDSEG | reg.HF_SS32)
    hidden |= cpl
    if vm.efer & EFER_LMA and flags & (1 << 21):
        hidden |= reg.HF_CS64 | reg.HF_CS32 | reg.HF_SS32
    else:
        if flags & (1 << 22):
            hidden |= reg.HF_CS32
        if load32(vm.registers_at + _SS + _FLAGS) & (1 << 22):
            hidden |= reg.HF_SS32
        for at in (reg.DS, reg.ES, reg.SS):
            if load64(vm.registers_at + at + _BASE) != 0:
                hidden |= reg.HF_ADDSEG
    store32(vm.registers_at + _HFLAGS, hidden & ~reg.HF_INHIBIT_IRQ)


@njit(nogil=True, cache=True)
def _read_descriptor(vm: Any, selector: int) -> int:
    """Read a descriptor to scratch + 32; OK, or a status (an error code for #GP: -1 - code)."""
    table = _LDT if selector & 4 else _GDT
    offset = selector & 0xFFF8
    limit = load32(vm.registers_at + table + _LIMIT)
    if selector & 0xFFFC == 0 or offset + 7 > limit:
        return -1
    base = load64(vm.registers_at + table + _BASE)
    return int(read_guest(vm, base + offset, vm.scratch_at + 32, 8))


@njit(nogil=True, cache=True)
def _read_gate(vm: Any, long_mode: bool, external: int) -> int:
    """Read and check the event's IDT gate into scratch; OK or a status."""
    vector, cpl = vm.event_vector, vm.cpl
    size = 16 if long_mode else 8
    code = vector * 8 + 2 + external
    if vector * size + size - 1 > load32(vm.registers_at + _IDT + _LIMIT):
        return int(_nested_fault(vm, VECTOR_GP, code))
    base = load64(vm.registers_at + _IDT + _BASE)
    status = read_guest(vm, base + vector * size, vm.scratch_at, size)
    if status != OK:
        return int(memory_status(vm, status))
    kind = load8(vm.scratch_at + 5)
    if kind & 0x1F != 0x0E and kind & 0x1F != 0x0F:
        return int(_nested_fault(vm, VECTOR_GP, code))
    if vm.event_is_software and (kind >> 5) & 3 < cpl:
        return int(_nested_fault(vm, VECTOR_GP, code))
    if kind & 0x80 == 0:
        return int(_nested_fault(vm, VECTOR_NP, code))
    selector = load8(vm.scratch_at + 2) | load8(vm.scratch_at + 3) << 8
    status = _read_descriptor(vm, selector)
    if status == -1:
        return int(_nested_fault(vm, VECTOR_GP, (selector & 0xFFFC) + external))
    if status != OK:
        return int(memory_status(vm, status))
    flags = load32(vm.scratch_at + 36)
    dpl = (flags >> 13) & 3
    wrong = flags & (1 << 12) == 0 or flags & (1 << 11) == 0 or dpl > cpl
    if wrong or (long_mode and flags & (3 << 21) != 1 << 21):
        return int(_nested_fault(vm, VECTOR_GP, (selector & 0xFFFC) + external))
    if flags & (1 << 15) == 0:
        return int(_nested_fault(vm, VECTOR_NP, (selector & 0xFFFC) + external))
    return OK


@njit(nogil=True, cache=True)
def _stack_pointer(vm: Any, cpl: int, new_cpl: int) -> int:
    """The stack pointer for a 64-bit frame to scratch + 40; OK or a status."""
    interrupt_stack = load8(vm.scratch_at + 4) & 7
    if interrupt_stack == 0 and new_cpl == cpl:
        store64(vm.scratch_at + 40, load64(vm.registers_at + _RSP) & ~15)
        return OK
    offset = 0x1C + 8 * interrupt_stack if interrupt_stack else 4 + 8 * new_cpl
    if offset + 7 > load32(vm.registers_at + _TR + _LIMIT):
        selector = load32(vm.registers_at + _TR) & 0xFFFC
        return int(_nested_fault(vm, VECTOR_TS, selector))
    base = load64(vm.registers_at + _TR + _BASE)
    status = read_guest(vm, base + offset, vm.scratch_at + 40, 8)
    if status != OK:
        return int(memory_status(vm, status))
    store64(vm.scratch_at + 40, load64(vm.scratch_at + 40) & ~15)
    return OK


@njit(nogil=True, cache=True)
def _enter_handler(vm: Any, flags: int, rip: int, new_cpl: int, segment_flags: int) -> None:
    """The last step of a delivery: flags, code segment, instruction pointer."""
    selector = load8(vm.scratch_at + 2) | load8(vm.scratch_at + 3) << 8
    cleared = (1 << 8) | (1 << 14) | (1 << 16) | (1 << 17)  # TF, NT, RF, VM
    if load8(vm.scratch_at + 5) & 1 == 0:
        cleared |= reg.RFLAGS_IF
    write_flags(vm, flags & ~cleared)
    low, high = load32(vm.scratch_at + 32), load32(vm.scratch_at + 36)
    base = (low >> 16) | (high & 0xFF) << 16 | (high & 0xFF00_0000)
    limit = (low & 0xFFFF) | (high & 0xF0000)
    if high & (1 << 23):
        limit = limit << 12 | 0xFFF
    set_code_segment(vm, selector, base, limit, segment_flags, new_cpl)
    store64(vm.registers_at + _RIP, rip)


@njit(nogil=True, cache=True)
def _deliver_long(vm: Any, cpl: int, external: int) -> int:
    status = _read_gate(vm, True, external)
    if status != OK:
        return int(status)
    segment_flags = load32(vm.scratch_at + 36)
    conforming = segment_flags & (1 << 10) != 0
    new_cpl = cpl if conforming else (segment_flags >> 13) & 3
    status = _stack_pointer(vm, cpl, new_cpl)
    if status != OK:
        return int(status)
    rsp = load64(vm.scratch_at + 40)
    flags = read_flags(vm)
    frame, words = vm.scratch_at + 64, 0
    if vm.event_has_error:
        store64(frame, vm.event_error)
        words = 1
    store64(frame + words * 8, load64(vm.registers_at + _RIP))
    store64(frame + words * 8 + 8, load32(vm.registers_at + _CS))
    pushed = flags
    if not vm.event_is_interrupt and not vm.event_is_software:
        pushed |= 1 << 16  # RF: the faulting instruction will be tried again
    if _is_trap(vm):
        pushed = flags
    store64(frame + words * 8 + 16, pushed)
    store64(frame + words * 8 + 24, load64(vm.registers_at + _RSP))
    store64(frame + words * 8 + 32, load32(vm.registers_at + _SS))
    size = (words + 5) * 8
    status = write_guest(vm, rsp - size, frame, size)
    if status != OK:
        return int(memory_status(vm, status))
    rip = (
        load8(vm.scratch_at)
        | load8(vm.scratch_at + 1) << 8
        | load8(vm.scratch_at + 6) << 16
        | load8(vm.scratch_at + 7) << 24
        | load32(vm.scratch_at + 8) << 32
    )
    if new_cpl != cpl:
        _set_segment(vm, _SS, new_cpl, 0, 0, new_cpl << 13)
    store64(vm.registers_at + _RSP, rsp - size)
    _enter_handler(vm, flags, rip, new_cpl, segment_flags)
    return OK


@njit(nogil=True, cache=True)
def _is_trap(vm: Any) -> bool:
    """#DB, #BP and #OF are reported after their instruction."""
    return vm.event_vector == 1 or vm.event_vector == 3 or vm.event_vector == 4


@njit(nogil=True, cache=True)
def _deliver_protected(vm: Any, cpl: int, external: int) -> int:
    """Delivery through a 32-bit gate; the stack is switched by the 32-bit TSS."""
    status = _read_gate(vm, False, external)
    if status != OK:
        return int(status)
    segment_flags = load32(vm.scratch_at + 36)
    low = load32(vm.scratch_at + 32)
    new_cpl = cpl if segment_flags & (1 << 10) else (segment_flags >> 13) & 3
    old_esp, old_ss = load64(vm.registers_at + _RSP) & 0xFFFF_FFFF, load32(vm.registers_at + _SS)
    esp, stack_base = old_esp, load64(vm.registers_at + _SS + _BASE)
    words = 3 + (1 if vm.event_has_error else 0)
    new_ss, ss_low, ss_high = old_ss, 0, 0
    if new_cpl != cpl:
        base = load64(vm.registers_at + _TR + _BASE)
        status = read_guest(vm, base + 4 + 8 * new_cpl, vm.scratch_at + 40, 8)
        if status != OK:
            return int(memory_status(vm, status))
        esp, new_ss = load32(vm.scratch_at + 40), load32(vm.scratch_at + 44) & 0xFFFF
        status = _read_descriptor(vm, new_ss)
        if status == -1:
            return int(_nested_fault(vm, VECTOR_TS, new_ss & 0xFFFC))
        if status != OK:
            return int(memory_status(vm, status))
        ss_low, ss_high = load32(vm.scratch_at + 32), load32(vm.scratch_at + 36)
        stack_base = (ss_low >> 16) | (ss_high & 0xFF) << 16 | (ss_high & 0xFF00_0000)
        store32(vm.scratch_at + 32, low)
        store32(vm.scratch_at + 36, segment_flags)
        words += 2
    flags = read_flags(vm)
    at = vm.scratch_at + 64
    if vm.event_has_error:
        store32(at, vm.event_error)
        at += 4
    store32(at, load64(vm.registers_at + _RIP))
    store32(at + 4, load32(vm.registers_at + _CS))
    store32(at + 8, flags)
    store32(at + 12, old_esp)
    store32(at + 16, old_ss)
    esp = (esp - words * 4) & 0xFFFF_FFFF
    status = write_guest(vm, (stack_base + esp) & 0xFFFF_FFFF, vm.scratch_at + 64, words * 4)
    if status != OK:
        return int(memory_status(vm, status))
    if new_cpl != cpl:
        _set_segment(vm, _SS, new_ss, stack_base, 0xFFFF_FFFF, ss_high)
    store64(vm.registers_at + _RSP, esp)
    offset_low = load8(vm.scratch_at) | load8(vm.scratch_at + 1) << 8
    offset_high = load8(vm.scratch_at + 6) << 16 | load8(vm.scratch_at + 7) << 24
    _enter_handler(vm, flags, offset_low | offset_high, new_cpl, segment_flags)
    return OK


@njit(nogil=True, cache=True)
def load_control(vm: Any) -> None:
    """Copy what the MMU needs from the register file to the control block."""
    state = vm.registers_at
    vm.cr0 = load64(state + reg.CR0)
    vm.cr3 = load64(state + reg.CR3)
    vm.cr4 = load64(state + reg.CR4)
    vm.efer = load64(state + reg.EFER)
    vm.cpl = load32(state + reg.HFLAGS) & reg.HF_CPL_MASK
    vm.alignment_check = load64(state + reg.RAW_FLAGS) & reg.RFLAGS_AC


@njit(nogil=True, cache=True)
def deliver_event(vm: Any) -> int:
    """Deliver the pending event.

    OK: done. TRUE_FAULT: another event took its place, deliver that. TRIPLE_FAULT: the VM is
    dead. Any other status of mmu.control: act on it and call again.
    """
    load_control(vm)
    external = 0 if vm.event_is_software else 1
    if vm.event_is_interrupt == 0 and vm.event_is_software == 0:
        external = 1
    vm.implicit_supervisor = 1
    if vm.efer & EFER_LMA:
        status = _deliver_long(vm, vm.cpl, external)
    else:
        status = _deliver_protected(vm, vm.cpl, external)
    vm.implicit_supervisor = 0
    if status == OK:
        if vm.event_is_interrupt:
            vm.interrupts_delivered += 1
        else:
            vm.exceptions_delivered += 1
            vm.exceptions[vm.event_vector & 31] += 1
        vm.event_vector = -1
    return int(status)


@njit(nogil=True, cache=True)
def _forget_single_step(vm: Any) -> None:
    """Clear DR6.BS, which the engine has set for a trap that does not come."""
    call_c3(vm.reg_read_at, (vm.engine, _DR6_REGISTER, vm.scratch_at + 248))
    store64(vm.scratch_at + 248, load64(vm.scratch_at + 248) & ~_DR6_BS)
    call_c3(vm.reg_write_at, (vm.engine, _DR6_REGISTER, vm.scratch_at + 248))


@njit(nogil=True, cache=True)
def system_call(vm: Any) -> None:
    """``syscall`` (AMD64 APM vol. 3): RIP is past the instruction already.

    Single-stepping looks at RFLAGS.TF when the instruction is done: the trap comes only if
    IA32_FMASK has left TF set, and then before the handler's first instruction.
    """
    single_step = vm.stop_vector == VECTOR_DB
    load_control(vm)
    state = vm.registers_at
    rip = load64(state + _RIP)
    if vm.efer & EFER_SCE == 0:
        store64(state + _RIP, rip - 2)
        raise_event(vm, VECTOR_UD, 0)
        return
    flags = read_flags(vm)
    from_64bit = load32(state + _HFLAGS) & reg.HF_CS64 != 0
    if vm.efer & EFER_LMA:
        store64(state + _RCX, rip)
        store64(state + _R11, flags & ~(1 << 16))
        write_flags(vm, flags & ~(load64(vm.fmask_at) & 0xFFFF_FFFF) & ~(1 << 16))
        target = load64(vm.lstar_at) if from_64bit else load64(vm.cstar_at)
    else:
        store64(state + _RCX, rip & 0xFFFF_FFFF)
        write_flags(vm, flags & ~(reg.RFLAGS_IF | 1 << 17 | 1 << 16))
        target = load64(vm.star_at) & 0xFFFF_FFFF
    selector = (load64(vm.star_at) >> 32) & 0xFFFC
    _set_segment(vm, _SS, selector + 8, 0, 0xFFFF_FFFF, _DATA_FLAGS)
    wide = 1 << 21 if vm.efer & EFER_LMA else 1 << 22
    set_code_segment(vm, selector, 0, 0xFFFF_FFFF, 0x00809B00 | wide, 0)
    store64(state + _RIP, target)
    if single_step:
        if read_flags(vm) & reg.RFLAGS_TF:
            raise_event(vm, VECTOR_DB, 0)
        else:
            _forget_single_step(vm)
