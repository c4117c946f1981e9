# SPDX-License-Identifier: Apache-2.0
"""Registers that are more than a word: flags, segments, and the control registers of the MMU."""

from __future__ import annotations

from memvirt.compiled import compiled
from memvirt.mmu.entry import EFER_LMA
from memvirt.mmu.native import call_c3, load32, load64, store32, store64

from . import registers as reg
from .engine_state import FLAGS_WORD, EngineState, mmu_of

_BASE, _LIMIT, _FLAGS = reg.SEGMENT_BASE, reg.SEGMENT_LIMIT, reg.SEGMENT_FLAGS


@compiled
def read_flags(engine: EngineState) -> int:
    """RFLAGS, condition codes included."""
    word_at = engine.state_at + FLAGS_WORD
    call_c3(engine.reg_read_at, (engine.handle, engine.rflags_register, word_at))
    return engine.flags_word


@compiled
def write_flags(engine: EngineState, flags: int) -> None:
    engine.flags_word = flags | 2
    word_at = engine.state_at + FLAGS_WORD
    call_c3(engine.reg_write_at, (engine.handle, engine.rflags_register, word_at))


@compiled
def set_segment(
    engine: EngineState, at: int, selector: int, base: int, limit: int, flags: int
) -> None:
    segment = engine.registers_at + at
    store32(segment, selector)
    store64(segment + _BASE, base)
    store32(segment + _LIMIT, limit)
    store32(segment + _FLAGS, flags)


@compiled
def set_code_segment(
    engine: EngineState, selector: int, base: int, limit: int, flags: int, cpl: int
) -> None:
    """Load CS with a descriptor's content and set what the translator derives from it.

    ``flags`` is the descriptor's second word. Bit 21 (L) makes a 64-bit segment in long mode.
    """
    mmu = mmu_of(engine)
    set_segment(engine, reg.CS, (selector & ~3) | cpl, base, limit, flags)
    hidden = load32(engine.registers_at + reg.HFLAGS)
    hidden &= ~(reg.HF_CPL_MASK | reg.HF_CS32 | reg.HF_CS64 | reg.HF_ADDSEG | reg.HF_SS32)
    hidden |= cpl
    if mmu.efer & EFER_LMA and flags & (1 << 21):
        hidden |= reg.HF_CS64 | reg.HF_CS32 | reg.HF_SS32
    else:
        if flags & (1 << 22):
            hidden |= reg.HF_CS32
        if load32(engine.registers_at + reg.SS + _FLAGS) & (1 << 22):
            hidden |= reg.HF_SS32
        for at in (reg.DS, reg.ES, reg.SS):
            if load64(engine.registers_at + at + _BASE) != 0:
                hidden |= reg.HF_ADDSEG
    store32(engine.registers_at + reg.HFLAGS, hidden & ~reg.HF_INHIBIT_IRQ)


@compiled
def load_control(engine: EngineState) -> None:
    """Copy what the MMU needs from the register file to its state."""
    mmu = mmu_of(engine)
    state = engine.registers_at
    mmu.cr0 = load64(state + reg.CR0)
    mmu.cr3 = load64(state + reg.CR3)
    mmu.cr4 = load64(state + reg.CR4)
    mmu.efer = load64(state + reg.EFER)
    mmu.cpl = load32(state + reg.HFLAGS) & reg.HF_CPL_MASK
    mmu.alignment_check = load64(state + reg.RAW_FLAGS) & reg.RFLAGS_AC
