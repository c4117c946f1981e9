# SPDX-License-Identifier: Apache-2.0
"""Control registers and MSRs, as memvirt's build of the engine asks for them.

What the manual refuses is #GP(0) with nothing changed (``cpu.control_rules``). CR8 and
IA32_APIC_BASE are the local APIC's, the time-stamp counter is virtual time; the engine keeps the
rest. An MSR that is not named here does not exist.
"""

from __future__ import annotations

from memvirt.address import PhysicalPageNumber
from memvirt.compiled import callback, compiled
from memvirt.cpu.control_rules import (
    PHYSICAL_ADDRESS_BITS,
    cr0_accepted,
    cr3_accepted,
    cr4_accepted,
    efer_accepted,
    is_canonical,
    loads_pdptes,
    pat_accepted,
    pdpte_accepted,
)
from memvirt.mmu.access import OK
from memvirt.mmu.native import argument_reference, load32, load64
from memvirt.platform.lapic import BASE_BOOTSTRAP, BASE_ENABLE
from memvirt.state_record import Record
from memvirt.vmm.frames import resolve_page

from . import registers as reg
from .abort import abort_instruction
from .engine_state import EngineState, engine_at, pc_at, vmm_of
from .virtual_time import virtual_now

READ_CR, WRITE_CR, READ_MSR, WRITE_MSR = range(4)  # engine/source/memvirt_control.c
PASS, DONE, FAULT = range(3)

MSR_TIME_STAMP = 0x10
MSR_PLATFORM_ID = 0x17
MSR_APIC_BASE = 0x1B
MSR_MICROCODE = 0x8B
MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP = 0x174, 0x175, 0x176
MSR_MISC_ENABLE = 0x1A0
MSR_DEBUG_CONTROL = 0x1D9
MSR_PAT = 0x277
MSR_EFER, MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_FMASK = (
    0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084,
)  # fmt: skip
MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE = 0xC000_0100, 0xC000_0101, 0xC000_0102
_MICROCODE_REVISION = 1 << 32
_DEBUG_CONTROL_BITS = 3  # LBR and BTF: there are no branch records


class ControlValue(Record):
    """The word that the engine passes by its address."""

    word: int


control_value_at = argument_reference(ControlValue)


@compiled
def _holds_address(msr: int) -> bool:
    """True for MSRs that take canonical addresses only."""
    if msr == MSR_SYSENTER_ESP or msr == MSR_SYSENTER_EIP:
        return True
    if msr == MSR_LSTAR or msr == MSR_CSTAR:
        return True
    return MSR_FS_BASE <= msr <= MSR_KERNEL_GS_BASE


@compiled
def _kept_by_engine(msr: int) -> bool:
    """True for MSRs that any value may be written to, or whose values have been checked."""
    if _holds_address(msr):
        return True
    if MSR_EFER <= msr <= MSR_FMASK:
        return True
    return msr == MSR_SYSENTER_CS or msr == MSR_MISC_ENABLE or msr == MSR_PAT


@compiled
def _write_cr(engine: EngineState, number: int, value: int) -> int:
    state = engine.registers_at
    efer = load64(state + reg.EFER)
    if load32(state + reg.HFLAGS) & reg.HF_CS64 == 0:
        value &= 0xFFFF_FFFF
    accepted = True
    if number == 0:
        flags = load32(state + reg.CS + reg.SEGMENT_FLAGS)
        accepted = cr0_accepted(
            load64(state + reg.CR0), value, load64(state + reg.CR4), efer, flags
        )
    elif number == 3:
        accepted = cr3_accepted(value, efer)
    elif number == 4:
        accepted = cr4_accepted(load64(state + reg.CR4), value, engine.cr4_bits, efer)
    elif number == 8:
        if value & ~15 != 0:
            return FAULT
        pc_at(engine.pc_at).lapic.task_priority = value << 4
        engine.deadline_code_bytes = engine.time_deadline = 0  # an interrupt may come now
        return DONE
    if not accepted:
        return FAULT
    return _load_pdptes(engine, number, value)


@compiled
def _load_pdptes(engine: EngineState, number: int, value: int) -> int:
    """Check the PDPTEs that a write to CR0, CR3 or CR4 loads: one refused is #GP(0).

    The walker reads them anew at every walk, so nothing is kept here. DONE with the instruction
    aborted if the page that holds them is not within reach.
    """
    state = engine.registers_at
    cr0, cr3, cr4 = load64(state + reg.CR0), load64(state + reg.CR3), load64(state + reg.CR4)
    old = cr0 if number == 0 else cr4
    cr0 = value if number == 0 else cr0
    cr3 = value if number == 3 else cr3
    cr4 = value if number == 4 else cr4
    if not loads_pdptes(number, old, value, cr0, cr4, load64(state + reg.EFER)):
        return PASS
    vmm = vmm_of(engine)
    mmu = vmm.mmu
    gpa = cr3 & 0xFFFF_FFE0
    ppn = PhysicalPageNumber(gpa >> 12)
    if ppn >= mmu.guest_pages:
        return FAULT  # the open bus: every bit is set
    status = resolve_page(vmm, ppn, False)
    if status != OK:
        engine.translation_status = status
        abort_instruction(engine)
        return DONE
    at = mmu.memory_at + (load32(mmu.pmap_frame_at + ppn * 4) << 12) + (gpa & 0xFFF)
    for index in range(4):
        if not pdpte_accepted(load64(at + index * 8)):
            return FAULT
    return PASS


@compiled
def _write_apic_base(engine: EngineState, value: int) -> int:
    lapic = pc_at(engine.pc_at).lapic
    page = value >> 12 << 12
    if value & 0xFFF & ~(BASE_ENABLE | BASE_BOOTSTRAP) != 0 or page >> PHYSICAL_ADDRESS_BITS != 0:
        return FAULT  # x2APIC mode among them
    lapic.base_msr = value
    # Translations of the old and the new page go before the next block begins.
    engine.flush_owed = 1
    engine.deadline_code_bytes = engine.time_deadline = 0
    return DONE


@compiled
def _write_msr(engine: EngineState, msr: int, value: int) -> int:
    state = engine.registers_at
    if msr == MSR_EFER:
        accepted = efer_accepted(
            load64(state + reg.EFER), value, engine.efer_bits, load64(state + reg.CR0)
        )
        return PASS if accepted else FAULT
    if msr == MSR_PAT:
        return PASS if pat_accepted(value) else FAULT
    if msr == MSR_APIC_BASE:
        return int(_write_apic_base(engine, value))
    if msr == MSR_TIME_STAMP:
        engine.time_stamp_offset = value - virtual_now(engine)
        return DONE
    if msr == MSR_DEBUG_CONTROL:
        return FAULT if value & ~_DEBUG_CONTROL_BITS else DONE
    if msr == MSR_MICROCODE:
        return DONE
    if _holds_address(msr) and not is_canonical(value):
        return FAULT
    return PASS if _kept_by_engine(msr) else FAULT


@compiled
def _read_msr(engine: EngineState, msr: int, result: ControlValue) -> int:
    if msr == MSR_APIC_BASE:
        result.word = pc_at(engine.pc_at).lapic.base_msr
    elif msr == MSR_TIME_STAMP:
        result.word = virtual_now(engine) + engine.time_stamp_offset
    elif msr == MSR_MICROCODE:
        result.word = _MICROCODE_REVISION
    elif msr == MSR_DEBUG_CONTROL or msr == MSR_PLATFORM_ID:
        result.word = 0
    else:
        return PASS if _kept_by_engine(msr) else FAULT
    return DONE


@callback("int32(int64, int32, uint32, int64, int64)")
def on_control(handle: int, kind: int, number: int, value: int, user: int) -> int:
    """``memvirt_control_t``: ``value`` is the address of a ``ControlValue``."""
    engine = engine_at(user)
    if engine.aborted:
        return DONE  # it never happens: the rest of the block will be done again
    word = control_value_at(value)
    if kind == WRITE_CR:
        return int(_write_cr(engine, number, word.word))
    if kind == READ_CR:
        word.word = pc_at(engine.pc_at).lapic.task_priority >> 4
        return DONE
    if kind == WRITE_MSR:
        return int(_write_msr(engine, number, word.word))
    return int(_read_msr(engine, number, word))
