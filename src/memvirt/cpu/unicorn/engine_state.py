# SPDX-License-Identifier: Apache-2.0
"""The state of one engine, as its callbacks and its run loop share it with Python.

The engine hands every callback the host address of this record; the VMM's record and the PC's are
found from it. Nothing here is known outside ``cpu.unicorn``.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Annotated

import numpy as np

from memvirt.address import GuestVirtualAddress, MachinePageNumber
from memvirt.compiled import compiled
from memvirt.mmu.access import PROCESSOR_STATUSES
from memvirt.mmu.mmu_state import MmuState
from memvirt.mmu.native import record_reference
from memvirt.platform.pc import PcState
from memvirt.state_record import Record, record_dtype
from memvirt.vmm.vmm_state import VmmState, vmm_state_at

from . import registers as reg

# A status beside those of ``mmu.access``: translated code of frame ``code_frame`` must go first.
DROP_CODE_AND_RETRY = PROCESSOR_STATUSES
NO_INSTRUCTION = PROCESSOR_STATUSES + 3  # a fetch from where no memory is

# Page flags of the engine, one byte per PPN. Code of shared frames is not kept account of: it is
# dropped whenever a page leaves such a frame.
EXECUTED = 1  # the engine may hold translated code of this page

NO_EVENT = -1


class EngineState(Record):
    """See the module docstring."""

    # Host addresses: this record, the VM's others, and arrays that the processor object owns.
    state_at: int
    vmm_at: int
    pc_at: int
    page_flags_at: int  # uint8 by PPN
    cpuid_at: int  # rows of cpuid.ROW_DTYPE
    cpuid_count: int
    cr4_bits: int  # not reserved (cpu.control_rules)
    efer_bits: int
    # The engine: its handle, places in its state (``registers.RegisterFile``), its C functions.
    handle: int
    registers_at: int
    large_pages_at: int
    fault_address_at: int
    error_code_at: int
    star_at: int
    lstar_at: int
    cstar_at: int
    fmask_at: int
    kernel_gs_at: int
    emu_start_at: int
    emu_stop_at: int
    ctl_at: int
    reg_read_at: int
    reg_write_at: int
    rflags_register: int  # Unicorn's number of RFLAGS
    access_at: int  # guest_memory.access_entry
    # MMIO windows on the engine's physical bus, above machine memory.
    lapic_window: int
    hole_window: int
    io_apic_window: int
    owns_mmu: int  # flat paging: the engine walks the guest's tables itself
    # Why the engine stopped.
    translation_status: int
    fault_gva: GuestVirtualAddress
    fault_access: int
    stop_vector: int
    stop_syscall: int
    stop_time: int
    io_status: int
    io_instruction_bytes: int  # length of the IN that Python completes
    aborted: int
    halted: int
    engine_error: int
    # Translated code: a window in which gVA is mA; the frame whose code must be dropped; the one
    # whose code was dropped last, and when.
    identity_window: int
    code_frame: MachinePageNumber
    dropped_frame: MachinePageNumber
    dropped_code_bytes: int
    # A flush that is owed: how many blocks may still begin before it, none of them in the pages
    # from first to last (gVA).
    flush_owed: int
    owed_first: GuestVirtualAddress
    owed_last: GuestVirtualAddress
    # Pending event to deliver (NO_EVENT: none), and progress of its delivery.
    event_vector: int
    event_has_error: int
    event_error: int
    event_is_software: int
    event_is_interrupt: int
    event_instruction_bytes: int  # of the ``int`` instruction it came from
    event_gva: int  # of a page fault: what CR2 was when it was raised
    # How the event now delivered came about: the first of a chain of events during deliveries, and
    # the exception that made the double fault.
    chain_length: int
    chain_vector: int
    chain_error: int
    chain_gva: int
    chain_rip: int
    chain_second: int
    chain_second_error: int
    # Virtual time. code_bytes counts bytes of guest code begun; idle_ns is what hlt skipped and
    # what port accesses and rdtsc took.
    code_bytes: int
    idle_ns: int
    deadline_code_bytes: int
    time_deadline: int
    interrupt_waiting: int
    quantum_end_ns: int
    stop_asked: int
    time_stamp_offset: int  # what the guest has added to the time-stamp counter
    # Starts of the engine in a row that were stopped before their first block, and the count of
    # code bytes at the last of them.
    stopped_starts: int
    stopped_code_bytes: int
    # A debugger outside the guest (debugging): whether there is anything to look for; a step
    # (debug_hooks.NO_STEP and so on) and where it began; a breakpoint that has been reached; a
    # watched access that was made, and its kind (0: none), written by the engine.
    debugged: int
    step: int
    step_rip: int
    at_breakpoint: int
    watch_gva: int
    watch_kind: int
    # Scratch areas: guest memory is copied here before it is looked at. Field addresses: below.
    gate_low: int  # IDT gate: bytes 0 to 7, and 8 to 15 in long mode
    gate_high: int
    descriptor: int
    stack_pointer: int  # from the TSS: RSP, or ESP and SS
    frame: Annotated[MutableSequence[int], np.int64, 8]  # what a delivery pushes
    task: Annotated[MutableSequence[int], np.int64, 13]  # the TSS of a task that is switched to
    task_segments: Annotated[MutableSequence[int], np.int64, 7]  # its descriptors: ES to GS, LDTR
    instruction: int  # bytes of the guest's code
    permissions: int  # of the I/O permission bitmap
    flags_word: int  # RFLAGS on its way through Unicorn's functions
    saved_registers: Annotated[MutableSequence[int], np.int64, reg.HFLAGS // 8]
    # Counters: translations, exits by reason, events delivered.
    tlb_fills: int
    large_fills: int
    mmio_fills: int
    precise_writes: int
    code_drops: int
    tlb_flushes: int
    engine_starts: int
    exits_page_fault: int
    exits_exception: int
    exits_syscall: int
    exits_halt: int
    exits_time: int
    exits_io: int
    exits_flush: int
    exits_code: int
    exits_need_frames: int
    exits_need_page: int
    exits_debug: int
    interrupts_delivered: int
    exceptions_delivered: int
    port_accesses: int
    mmio_accesses: int
    time_stamp_reads: int
    cpuid_reads: int
    exceptions: Annotated[MutableSequence[int], np.int64, 32]  # delivered, by vector


ENGINE_DTYPE = record_dtype(EngineState)


def _offset(name: str) -> int:
    return int(ENGINE_DTYPE.fields[name][1])


# Offsets of the scratch areas from ``state_at``: where guest memory is copied to and from.
GATE = _offset("gate_low")
DESCRIPTOR = _offset("descriptor")
STACK_POINTER = _offset("stack_pointer")
FRAME = _offset("frame")
TASK = _offset("task")
INSTRUCTION = _offset("instruction")
PERMISSIONS = _offset("permissions")
FLAGS_WORD = _offset("flags_word")
SAVED_REGISTERS = _offset("saved_registers")
WATCH_HIT = _offset("watch_gva")  # and watch_kind: engine/source/memvirt_watch.c writes both

engine_at = record_reference(EngineState)
pc_at = record_reference(PcState)


@compiled
def vmm_of(engine: EngineState) -> VmmState:
    """The record of the VMM this engine runs a VM of."""
    return vmm_state_at(engine.vmm_at)


@compiled
def mmu_of(engine: EngineState) -> MmuState:
    """The MMU's state in the VMM's record."""
    return vmm_state_at(engine.vmm_at).mmu
