# SPDX-License-Identifier: Apache-2.0
"""The run loop: from one entry to the next thing only Python can do. All of it is compiled.

Page faults, hidden faults, exceptions, interrupts, system calls, port I/O and idling are handled
here; starting the engine again costs about 0.1 microseconds. Python is entered for frames, for
pages that must be brought back or unshared, for console output, and at the end of a quantum.
"""

from __future__ import annotations

from unicorn import unicorn_const

from memvirt.address import GuestVirtualAddress, MachinePageNumber
from memvirt.compiled import compiled
from memvirt.mmu.access import (
    FLUSH_AND_RETRY,
    NEED_FRAMES,
    NEED_PAGE,
    NOT_CANONICAL,
    OK,
    TRUE_FAULT,
)
from memvirt.mmu.native import (
    call_c5,
    call_variadic2,
    call_variadic4,
    load32,
    load64,
    store32,
    store64,
)
from memvirt.platform.pc import (
    PcState,
    pc_acknowledge_interrupt,
    pc_advance,
    pc_interrupt_pending,
    pc_next_deadline,
)
from memvirt.vmm.translate import note_flush

from . import registers as reg
from .abort import undo_aborted
from .debug_hooks import NO_STEP, STEP_ARMED, STEP_BEGUN, stop_is_due, stopped_in_block
from .deliver import deliver_event, system_call
from .engine_state import (
    DROP_CODE_AND_RETRY,
    NO_EVENT,
    NO_INSTRUCTION,
    EngineState,
    engine_at,
    mmu_of,
    pc_at,
    vmm_of,
)
from .events import (
    NO_FIRMWARE,
    TRIPLE_FAULT,
    VECTOR_GP,
    VECTOR_NMI,
    VECTOR_PF,
    VECTOR_UD,
    raise_event,
    raise_software_event,
)
from .hooks import interrupts_enabled, takes_nmi
from .virtual_time import code_bytes_until, virtual_now

# Why the loop returned; NEED_FRAMES, NEED_PAGE and MISCONFIGURED of mmu.access are the
# others.
LEFT_QUANTUM = 20  # the quantum's virtual time is over, or somebody asked to stop
LEFT_IO = 21  # a device wants Python: io_status says what
LEFT_HALTED = 22  # hlt, and nothing will ever wake the processor but input
LEFT_TRIPLE_FAULT = 23
LEFT_NO_FIRMWARE = 25  # an event in real mode that only a BIOS would handle
LEFT_ENGINE_ERROR = 24  # engine_error is Unicorn's number
LEFT_DEBUG = 26  # the debugger's step is done, its breakpoint or watchpoint reached

_CTL_WRITE = 1 << 30
_REMOVE_CACHE = unicorn_const.UC_CTL_TB_REMOVE_CACHE | 2 << 26 | _CTL_WRITE
_ERR_OK = unicorn_const.UC_ERR_OK
_ERR_INSN_INVALID = unicorn_const.UC_ERR_INSN_INVALID
# A fetch from where no memory is, with flat paging: ``tlb_fill`` says why it is #UD.
_ERR_FETCH_UNMAPPED = unicorn_const.UC_ERR_FETCH_UNMAPPED
_ERR_FETCH_PROT = unicorn_const.UC_ERR_FETCH_PROT
_CR2, _RIP = reg.CR2, reg.RIP


@compiled
def flush_translations(engine: EngineState) -> None:
    """Drop every translation the processor caches."""
    call_variadic2(engine.ctl_at, (engine.handle, reg.CTL_TLB_FLUSH))
    engine.tlb_flushes += 1
    note_flush(vmm_of(engine))
    engine.flush_owed = 0


@compiled
def drop_code(engine: EngineState, mpn: MachinePageNumber) -> None:
    """Drop translated code of frame ``mpn``, and all cached translations.

    The engine finds code by guest virtual address, so for a moment every virtual address is
    the machine address of the same number (``identity_window``).
    """
    flush_translations(engine)
    engine.identity_window = 1
    call_variadic4(engine.ctl_at, (engine.handle, _REMOVE_CACHE, mpn << 12, (mpn << 12) + 0x1000))
    engine.identity_window = 0
    flush_translations(engine)
    engine.code_drops += 1
    engine.dropped_frame = mpn
    engine.dropped_code_bytes = engine.code_bytes


# What Python calls takes addresses: handing a record to compiled code takes 7 microseconds.


@compiled
def flush_translations_at(state_at: int) -> None:
    flush_translations(engine_at(state_at))


@compiled
def drop_code_at(state_at: int, mpn: MachinePageNumber) -> None:
    drop_code(engine_at(state_at), mpn)


@compiled
def _act_on_status(engine: EngineState, status: int) -> bool:
    """Deal with a status that needs no Python; False if it does."""
    if status == FLUSH_AND_RETRY:
        engine.exits_flush += 1
        flush_translations(engine)
        return True
    if status == DROP_CODE_AND_RETRY:
        engine.exits_code += 1
        drop_code(engine, engine.code_frame)
        return True
    return False


@compiled
def _count_need(engine: EngineState, status: int) -> None:
    if status == NEED_FRAMES:
        engine.exits_need_frames += 1
    elif status == NEED_PAGE:
        engine.exits_need_page += 1


@compiled
def _deliver(engine: EngineState) -> int:
    """Deliver the pending event, however many steps it takes: OK, or why the loop must leave."""
    while True:
        status = deliver_event(engine)
        if status == OK or status == TRIPLE_FAULT:
            return LEFT_TRIPLE_FAULT if status == TRIPLE_FAULT else OK
        if status == NO_FIRMWARE:
            return LEFT_NO_FIRMWARE
        if status != TRUE_FAULT and not _act_on_status(engine, status):
            _count_need(engine, status)
            return int(status)


@compiled
def _raise_interrupt(engine: EngineState, vector: int) -> None:
    engine.event_vector = vector
    engine.event_has_error = 0
    engine.event_is_software = 0
    engine.event_is_interrupt = 1
    engine.halted = 0


@compiled
def _take_interrupt(engine: EngineState, pc: PcState) -> bool:
    """Make a waiting interrupt the pending event, if the processor may take it."""
    engine.interrupt_waiting = pc_interrupt_pending(pc) or pc.lapic.nmi_pending != 0
    if not engine.interrupt_waiting:
        return False
    if takes_nmi(engine, pc):
        pc.lapic.nmi_pending = 0
        hidden_at = engine.registers_at + reg.HFLAGS_2
        store32(hidden_at, load32(hidden_at) | reg.HF2_NMI)
        _raise_interrupt(engine, VECTOR_NMI)
        return True
    if not pc_interrupt_pending(pc) or not interrupts_enabled(engine):
        return False
    vector = pc_acknowledge_interrupt(pc)
    engine.interrupt_waiting = pc_interrupt_pending(pc)
    if vector < 0:
        return False
    _raise_interrupt(engine, vector)
    return True


@compiled
def _idle(engine: EngineState, pc: PcState) -> int:
    """The processor is halted: skip to the next event, or the end of the quantum."""
    now = virtual_now(engine)
    following = min(pc_next_deadline(pc, now), engine.quantum_end_ns)
    if following == engine.quantum_end_ns and pc_next_deadline(pc, now) == (1 << 63) - 1:
        return LEFT_HALTED
    if load64(engine.registers_at + reg.RAW_FLAGS) & reg.RFLAGS_IF == 0:
        return LEFT_HALTED
    engine.idle_ns += max(following - now, 0)
    if virtual_now(engine) >= engine.quantum_end_ns:
        return LEFT_QUANTUM
    return OK


@compiled
def _start_engine(engine: EngineState, pc: PcState) -> int:
    deadline = min(pc_next_deadline(pc, virtual_now(engine)), engine.quantum_end_ns)
    engine.time_deadline = code_bytes_until(engine, deadline)
    # With an interrupt waiting every block asks whether it can be taken yet.
    engine.deadline_code_bytes = 0 if engine.interrupt_waiting else engine.time_deadline
    if engine.step != NO_STEP:  # nothing may come between, and what had begun has not been done
        engine.interrupt_waiting = 0
        engine.deadline_code_bytes = engine.time_deadline
        if engine.step == STEP_BEGUN:
            engine.step = STEP_ARMED
    engine.translation_status = OK
    engine.stop_vector = -1
    engine.stop_syscall = 0
    engine.stop_time = 0
    engine.io_status = 0
    engine.engine_starts += 1
    rip = load64(engine.registers_at + _RIP)
    return call_c5(engine.emu_start_at, (engine.handle, rip, 0, 0, 0))


@compiled
def _after_translation(engine: EngineState) -> int:
    """A translation was refused: OK to go on, or why the loop must leave."""
    mmu = mmu_of(engine)
    status = engine.translation_status
    engine.translation_status = OK
    if status == TRUE_FAULT:
        engine.exits_page_fault += 1
        exact = GuestVirtualAddress(engine.fault_gva | (load64(engine.fault_address_at) & 0xFFF))
        store64(engine.registers_at + _CR2, exact)
        engine.fault_gva = engine.event_gva = exact
        raise_event(engine, VECTOR_PF, mmu.fault_error)
        return OK
    if status == NOT_CANONICAL:
        engine.exits_exception += 1
        raise_event(engine, VECTOR_GP, 0)
        return OK
    if status == NO_INSTRUCTION:
        engine.exits_exception += 1
        raise_event(engine, VECTOR_UD, 0)
        return OK
    if _act_on_status(engine, status):
        return OK
    _count_need(engine, status)
    return int(status)


@compiled
def _after_exception(engine: EngineState) -> None:
    """Make the exception, or the ``int`` instruction, that stopped the engine the pending event."""
    engine.exits_exception += 1
    if engine.event_is_software:
        raise_software_event(engine, engine.stop_vector)
        return
    raise_event(engine, engine.stop_vector, engine.event_error)
    engine.event_gva = load64(engine.registers_at + _CR2)
    if engine.owns_mmu and engine.stop_vector == VECTOR_PF:
        vmm_of(engine).true_faults += 1


@compiled
def _after_engine(engine: EngineState, pc: PcState, error: int) -> int:
    """Act on why the engine stopped: OK to go on, or why the loop must leave.

    The order is that in which things happened. A request to a device comes first: its instruction
    has been executed or aborted, and what the rest of the block ran into then never happened. A
    translation or an exception ends the block where it is. ``syscall`` comes before the exception
    that is its own single-step trap. All the rest lies between two instructions.
    """
    if engine.aborted:
        undo_aborted(engine)
    if engine.io_status != 0:
        engine.exits_io += 1
        engine.translation_status = OK
        return LEFT_IO
    if engine.translation_status != OK:
        return int(_after_translation(engine))
    if engine.stop_syscall:
        engine.exits_syscall += 1
        system_call(engine)
        return OK
    if engine.stop_vector >= 0:
        _after_exception(engine)
        return OK
    if error == _ERR_INSN_INVALID or error == _ERR_FETCH_UNMAPPED or error == _ERR_FETCH_PROT:
        engine.exits_exception += 1
        raise_event(engine, VECTOR_UD, 0)
        return OK
    if error != _ERR_OK:
        engine.engine_error = error
        return LEFT_ENGINE_ERROR
    if engine.debugged and stopped_in_block(engine):
        return OK
    if engine.stop_time:
        engine.exits_time += 1
        return OK
    engine.exits_halt += 1
    engine.halted = 1
    return OK


@compiled
def run(engine: EngineState, pc: PcState) -> int:
    """Run guest code until Python is needed; the reason is the result.

    Called with the GIL released, one thread per VM. ``quantum_end_ns`` bounds virtual time.
    """
    while True:
        if engine.debugged and stop_is_due(engine):
            engine.exits_debug += 1
            return LEFT_DEBUG
        now = virtual_now(engine)
        if now >= engine.quantum_end_ns or engine.stop_asked:
            return LEFT_QUANTUM
        pc_advance(pc, now)
        if engine.event_vector != NO_EVENT:
            status = _deliver(engine)
            if status != OK:
                return status
            continue
        if engine.step == NO_STEP or engine.halted:
            if _take_interrupt(engine, pc):
                continue
        if engine.halted:
            status = _idle(engine, pc)
            if status != OK:
                return status
            continue
        if engine.flush_owed:
            flush_translations(engine)
        error = _start_engine(engine, pc)
        status = _after_engine(engine, pc, error)
        if status != OK:
            return status


@compiled
def run_at(state_at: int) -> int:
    """``run`` for Python, with the address of the engine's state."""
    engine = engine_at(state_at)
    return run(engine, pc_at(engine.pc_at))
