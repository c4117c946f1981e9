# SPDX-License-Identifier: Apache-2.0
"""The run loop: from one entry to the next thing only Python can do. All of it is compiled.

Page faults, hidden faults, exceptions, interrupts, system calls, port I/O and idling are handled
here; starting the engine again costs about 0.1 microseconds. Python is entered for frames, for
pages that must be brought back or unshared, for console output, and at the end of a quantum.
"""

from __future__ import annotations

from typing import Any

from numba import njit
from unicorn import unicorn_const

from memvirt.mmu.control import (
    DROP_CODE_AND_RETRY,
    FLUSH_AND_RETRY,
    NEED_FRAMES,
    NEED_PAGE,
    NOT_CANONICAL,
    OK,
    PAGING_FLAT,
    TRUE_FAULT,
)
from memvirt.mmu.native import (
    call_c5,
    call_variadic2,
    call_variadic4,
    load64,
    store64,
)
from memvirt.platform.pc import (
    pc_acknowledge_interrupt,
    pc_advance,
    pc_interrupt_pending,
    pc_next_deadline,
)

from . import registers as reg
from .abort import undo_aborted
from .deliver import (
    TRIPLE_FAULT,
    VECTOR_GP,
    VECTOR_PF,
    VECTOR_UD,
    deliver_event,
    raise_event,
    raise_software_event,
    system_call,
)
from .hooks import interrupts_enabled
from .virtual_time import code_bytes_until, virtual_now

# Why the loop returned; NEED_FRAMES (5) and NEED_PAGE (6) of mmu.control are the others.
LEFT_QUANTUM = 20  # the quantum's virtual time is over, or somebody asked to stop
LEFT_IO = 21  # a device wants Python: io_status says what
LEFT_HALTED = 22  # hlt, and nothing will ever wake the processor but input
LEFT_TRIPLE_FAULT = 23
LEFT_ENGINE_ERROR = 24  # engine_error is Unicorn's number

_CTL_WRITE = 1 << 30
_REMOVE_CACHE = unicorn_const.UC_CTL_TB_REMOVE_CACHE | 2 << 26 | _CTL_WRITE
_ERR_OK = unicorn_const.UC_ERR_OK
_ERR_INSN_INVALID = unicorn_const.UC_ERR_INSN_INVALID
_CR2, _RIP = reg.CR2, reg.RIP


@njit(nogil=True, cache=True)
def flush_translations(vm: Any) -> None:
    """Drop every translation the processor caches."""
    call_variadic2(vm.ctl_at, (vm.engine, reg.CTL_TLB_FLUSH))
    vm.tlb_flushes += 1
    vm.shadow_stale = 0
    vm.flush_owed = 0


@njit(nogil=True, cache=True)
def drop_code(vm: Any, mpn: int) -> None:
    """Drop translated code of frame ``mpn``, and all cached translations.

    The engine finds code by guest virtual address, so for a moment every virtual address is
    the machine address of the same number (``identity_window``).
    """
    flush_translations(vm)
    vm.identity_window = 1
    call_variadic4(vm.ctl_at, (vm.engine, _REMOVE_CACHE, mpn << 12, (mpn << 12) + 0x1000))
    vm.identity_window = 0
    flush_translations(vm)
    vm.code_drops += 1
    vm.dropped_frame = mpn
    vm.dropped_code_bytes = vm.code_bytes


@njit(nogil=True, cache=True)
def _act_on_status(vm: Any, status: int) -> bool:
    """Deal with a status that needs no Python; False if it does."""
    if status == FLUSH_AND_RETRY:
        vm.exits_flush += 1
        flush_translations(vm)
        return True
    if status == DROP_CODE_AND_RETRY:
        vm.exits_code += 1
        drop_code(vm, vm.exit_frame)
        return True
    return False


@njit(nogil=True, cache=True)
def _count_need(vm: Any, status: int) -> None:
    if status == NEED_FRAMES:
        vm.exits_need_frames += 1
    elif status == NEED_PAGE:
        vm.exits_need_page += 1


@njit(nogil=True, cache=True)
def _deliver(vm: Any) -> int:
    """Deliver the pending event, however many steps it takes: OK, or why the loop must leave."""
    while True:
        status = deliver_event(vm)
        if status == OK or status == TRIPLE_FAULT:
            return LEFT_TRIPLE_FAULT if status == TRIPLE_FAULT else OK
        if status != TRUE_FAULT and not _act_on_status(vm, status):
            _count_need(vm, status)
            return int(status)


@njit(nogil=True, cache=True)
def _take_interrupt(vm: Any, pc: Any) -> bool:
    """Make a waiting interrupt the pending event, if the processor may take it."""
    vm.interrupt_waiting = pc_interrupt_pending(pc)
    if not vm.interrupt_waiting or not interrupts_enabled(vm):
        return False
    vector = pc_acknowledge_interrupt(pc)
    vm.interrupt_waiting = pc_interrupt_pending(pc)
    if vector < 0:
        return False
    vm.event_vector = vector
    vm.event_has_error = 0
    vm.event_is_software = 0
    vm.event_is_interrupt = 1
    vm.halted = 0
    return True


@njit(nogil=True, cache=True)
def _idle(vm: Any, pc: Any) -> int:
    """The processor is halted: skip to the next event, or the end of the quantum."""
    now = virtual_now(vm)
    following = min(pc_next_deadline(pc, now), vm.quantum_end_ns)
    if following == vm.quantum_end_ns and pc_next_deadline(pc, now) == (1 << 63) - 1:
        return LEFT_HALTED
    if load64(vm.registers_at + reg.RAW_FLAGS) & reg.RFLAGS_IF == 0:
        return LEFT_HALTED
    vm.idle_ns += max(following - now, 0)
    if virtual_now(vm) >= vm.quantum_end_ns:
        return LEFT_QUANTUM
    return OK


@njit(nogil=True, cache=True)
def _start_engine(vm: Any, pc: Any) -> int:
    deadline = min(pc_next_deadline(pc, virtual_now(vm)), vm.quantum_end_ns)
    vm.time_deadline = code_bytes_until(vm, deadline)
    # With an interrupt waiting every block asks whether it can be taken yet.
    vm.deadline_code_bytes = 0 if vm.interrupt_waiting else vm.time_deadline
    vm.translation_status = OK
    vm.stop_vector = -1
    vm.stop_syscall = 0
    vm.stop_time = 0
    vm.io_status = 0
    vm.engine_starts += 1
    rip = load64(vm.registers_at + _RIP)
    return call_c5(vm.emu_start_at, (vm.engine, rip, 0, 0, 0))


@njit(nogil=True, cache=True)
def _after_translation(vm: Any) -> int:
    """A translation was refused: OK to go on, or why the loop must leave."""
    status = vm.translation_status
    vm.translation_status = OK
    if status == TRUE_FAULT:
        vm.exits_page_fault += 1
        exact = vm.fault_gva | (load64(vm.fault_address_at) & 0xFFF)
        store64(vm.registers_at + _CR2, exact)
        vm.fault_gva = exact
        raise_event(vm, VECTOR_PF, vm.fault_error)
        return OK
    if status == NOT_CANONICAL:
        vm.exits_exception += 1
        raise_event(vm, VECTOR_GP, 0)
        return OK
    if _act_on_status(vm, status):
        return OK
    _count_need(vm, status)
    return int(status)


@njit(nogil=True, cache=True)
def _after_exception(vm: Any) -> None:
    """Make the exception, or the ``int`` instruction, that stopped the engine the pending event."""
    vm.exits_exception += 1
    if vm.event_is_software:
        raise_software_event(vm, vm.stop_vector)
        return
    raise_event(vm, vm.stop_vector, vm.event_error)
    if vm.paging == PAGING_FLAT and vm.stop_vector == VECTOR_PF:
        vm.true_faults += 1


@njit(nogil=True, cache=True)
def _after_engine(vm: Any, pc: Any, error: int) -> int:
    """Act on why the engine stopped: OK to go on, or why the loop must leave.

    The order is that in which things happened. A request to a device comes first: its instruction
    has been executed or aborted, and what the rest of the block ran into then never happened. A
    translation or an exception ends the block where it is. ``syscall`` comes before the exception
    that is its own single-step trap. All the rest lies between two instructions.
    """
    if vm.aborted:
        undo_aborted(vm)
    if vm.io_status != 0:
        vm.exits_io += 1
        vm.translation_status = OK
        return LEFT_IO
    if vm.translation_status != OK:
        return int(_after_translation(vm))
    if vm.stop_syscall:
        vm.exits_syscall += 1
        system_call(vm)
        return OK
    if vm.stop_vector >= 0:
        _after_exception(vm)
        return OK
    if error == _ERR_INSN_INVALID:
        vm.exits_exception += 1
        raise_event(vm, VECTOR_UD, 0)
        return OK
    if error != _ERR_OK:
        vm.engine_error = error
        return LEFT_ENGINE_ERROR
    if vm.stop_time:
        vm.exits_time += 1
        return OK
    vm.exits_halt += 1
    vm.halted = 1
    return OK


@njit(nogil=True, cache=True)
def run(vm: Any, pc: Any) -> int:
    """Run guest code until Python is needed; the reason is the result.

    Called with the GIL released, one thread per VM. ``quantum_end_ns`` bounds virtual time.
    """
    while True:
        now = virtual_now(vm)
        if now >= vm.quantum_end_ns or vm.stop_asked:
            return LEFT_QUANTUM
        pc_advance(pc, now)
        if vm.event_vector >= 0:
            status = _deliver(vm)
            if status != OK:
                return status
            continue
        if _take_interrupt(vm, pc):
            continue
        if vm.halted:
            status = _idle(vm, pc)
            if status != OK:
                return status
            continue
        if vm.flush_owed:
            flush_translations(vm)
        error = _start_engine(vm, pc)
        status = _after_engine(vm, pc, error)
        if status != OK:
            return status
