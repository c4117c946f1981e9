# SPDX-License-Identifier: Apache-2.0
"""The software processor: one Unicorn engine that uses our page tables and no others."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import unicorn
from unicorn import unicorn_const as uc_const
from unicorn import x86_const

from memvirt.address import PAGE_BYTES, MachinePageNumber, PhysicalPageNumber
from memvirt.cpu.control_rules import PHYSICAL_ADDRESS_BITS, cr4_bits, efer_bits
from memvirt.cpu.processor import (
    ExitReason,
    ProcessorError,
    ProcessorExit,
    ProcessorStatistics,
    SegmentState,
)
from memvirt.mmu.access import MISCONFIGURED, NEED_FRAMES, NEED_PAGE
from memvirt.mmu.host_ranges import ForeignRanges, host_address
from memvirt.names import choose
from memvirt.platform.ioapic import IO_APIC_BASE
from memvirt.platform.pc import Pc
from memvirt.platform.ports import IO_BACKDOOR, IO_BALLOON
from memvirt.state_record import new_record
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.stale import Stale

from . import ENGINE, hooks
from . import registers as reg
from . import run as run_loop
from .address_space import check_address_space
from .binding import function_address, hook_function, library
from .block_counter import block_counter_address
from .chain import chain_of
from .control_registers import on_control
from .counters import processor_statistics
from .cpuid import answers_by_register, cpuid_table
from .debugging import UnicornDebugging
from .engine_state import ENGINE_DTYPE, EXECUTED, NO_EVENT, EngineState
from .features import offered_features
from .guest_memory import access_entry
from .own_build import IS_OWN_BUILD, count_blocks, set_control
from .run import drop_code_at, flush_translations_at, run_at
from .tlb_fill import LAPIC_GPA
from .version import check_engine_version
from .virtual_time import PORT_ACCESS_NS, TIME_STAMP_NS, virtual_now_at

_UC_CTL_TLB_VIRTUAL = uc_const.UC_TLB_VIRTUAL
_TB_FLUSH = uc_const.UC_CTL_TB_FLUSH | uc_const.UC_CTL_IO_WRITE << 30


class UnicornProcessor:
    """The processor of the VM of ``vmm``; ``pc`` is what ``platform.pc.new_pc`` made.

    Different processors may run on different threads (``run`` releases the GIL). Raises
    ProcessorError or EngineLayoutError for an engine that cannot be used.
    """

    def __init__(self, vmm: VirtualMachineMonitor, pc: Pc) -> None:
        self.vmm = vmm
        self._pc = pc
        self._flat = vmm.paging is PagingMode.FLAT
        self._record = new_record(ENGINE_DTYPE)
        self.state: EngineState = self._record[0]
        self._page_flags = np.zeros(vmm.pmap.pages, np.uint8)
        if ENGINE.problem:
            raise ProcessorError(ENGINE.problem)
        check_engine_version()
        check_address_space()
        self._engine: unicorn.Uc | None = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.engine.ctl_set_cpu_model(x86_const.UC_CPU_X86_ICELAKE_SERVER)
        self.engine.ctl_exits_enabled(False)
        self._engine_ranges = ForeignRanges()
        self._probe()
        if not self._flat:
            self.engine.ctl_set_tlb_mode(_UC_CTL_TLB_VIRTUAL)
        self._check(library.uc_ctl(self._handle, _exits_enable(), 1), "exits")
        self._set_up_state()
        self._map_memory()
        self._add_hooks()
        self.debugging = UnicornDebugging(self)

    @property
    def engine(self) -> Any:
        """The Unicorn engine. Raises ProcessorError after ``close``."""
        if self._engine is None:
            raise ProcessorError("the processor is powered off")
        return self._engine

    @property
    def _handle(self) -> Any:
        return self.engine._uch

    @staticmethod
    def _check(error: int, what: str) -> None:
        if error:
            raise ProcessorError(f"{what}: {unicorn.UcError(error)}")

    def _probe(self) -> None:
        """Find the register file and CPUID answers on this engine before it is used."""
        self.cpuid = cpuid_table(self.engine, offered_features(stock_engine=not IS_OWN_BUILD))
        self.engine.ctl_set_tlb_mode(_UC_CTL_TLB_VIRTUAL)
        self._check(library.uc_ctl(self._handle, reg.CTL_TLB_FLUSH), "flushing translations")
        self.registers = reg.locate_registers(self.engine)
        for number, value in reg.POWER_UP:
            self.engine.reg_write(number, value)
        self.engine.ctl_set_tlb_mode(uc_const.UC_TLB_CPU)
        self._check(library.uc_ctl(self._handle, reg.CTL_TLB_FLUSH), "flushing translations")

    def _map_memory(self) -> None:
        """Machine memory as the engine's physical memory, and the MMIO windows."""
        machine, state = self.vmm.machine, self.state
        address, size = machine.host_address, machine.bytes
        if self._flat:
            address += int(self.vmm.pmap.frame[0]) * PAGE_BYTES
            size = self.vmm.pmap.pages * PAGE_BYTES
        handle, everything = self._handle, uc_const.UC_PROT_ALL
        base = ctypes.c_uint64(0)
        error = library.uc_mem_map_ptr(
            handle, base, ctypes.c_size_t(size), everything, ctypes.c_void_p(address)
        )
        self._check(error, f"mapping {size:#x} bytes of machine memory")
        page, hole = PAGE_BYTES, (hooks.on_hole_read, hooks.on_hole_write)
        windows = [
            (int(state.lapic_window), page, hooks.on_apic_read, hooks.on_apic_write),
            (int(state.io_apic_window), page, hooks.on_io_apic_read, hooks.on_io_apic_write),
        ]
        if self._flat:
            # The engine's own walks give any guest physical address: what no device and no memory
            # has is the open bus.
            taken = sorted(start for start, *_ in windows)
            begins = [size, *(start + page for start in taken)]
            ends = [*taken, 1 << PHYSICAL_ADDRESS_BITS]
            windows += [(at, end - at, *hole) for at, end in zip(begins, ends, strict=True)]
        else:
            windows.append((int(state.hole_window), page, *hole))
        user = ctypes.c_void_p(int(state.state_at))
        for start, length, read, write in windows:
            error = library.uc_mmio_map(
                handle,
                ctypes.c_uint64(start),
                ctypes.c_size_t(length),
                ctypes.c_void_p(read.address),
                user,
                ctypes.c_void_p(write.address),
                user,
            )
            self._check(error, f"mapping the MMIO window at {start:#x}")

    def _set_up_state(self) -> None:
        state, registers = self.state, self.registers
        self._state_at = state.state_at = host_address(self._record, "engine state")
        state.vmm_at = self.vmm.state_address
        state.pc_at = host_address(np.asarray(self._pc), "virtual PC")
        state.page_flags_at = host_address(self._page_flags, "page flags of the engine")
        state.cpuid_at = host_address(self.cpuid, "CPUID table")
        state.cpuid_count = self.cpuid.size
        answers = answers_by_register(self.cpuid)
        state.cr4_bits, state.efer_bits = cr4_bits(answers), efer_bits(answers)
        state.access_at = access_entry.address
        state.handle = int(ctypes.cast(self._handle, ctypes.c_void_p).value or 0)
        allow = self._engine_ranges.add
        state.registers_at = allow(registers.base, reg.EFER + 8, "register file")
        state.large_pages_at = allow(
            registers.large_pages, reg.MMU_INDEXES * reg.TLB_RECORD_BYTES, "TLB records"
        )
        state.fault_address_at = allow(registers.fault_address, 8, "fault address")
        state.error_code_at = allow(
            registers.error_code, reg.EXCEPTION_IN_FLIGHT + 4, "exception in flight"
        )
        for name in ("star", "lstar", "cstar", "fmask"):
            setattr(state, f"{name}_at", allow(getattr(registers, name), 8, name.upper()))
        state.kernel_gs_at = allow(registers.kernel_gs_base, 8, "KERNEL_GS_BASE")
        state.emu_start_at = function_address("uc_emu_start")
        state.emu_stop_at = function_address("uc_emu_stop")
        state.ctl_at = function_address("uc_ctl")
        state.reg_read_at = function_address("uc_reg_read")
        state.reg_write_at = function_address("uc_reg_write")
        state.rflags_register = x86_const.UC_X86_REG_EFLAGS
        state.event_vector = NO_EVENT
        state.owns_mmu = int(self._flat)
        above_memory = -(-self.vmm.machine.bytes // (1 << 21)) * (1 << 21)
        state.lapic_window = LAPIC_GPA if self._flat else above_memory
        state.hole_window = above_memory + PAGE_BYTES
        state.io_apic_window = IO_APIC_BASE if self._flat else above_memory + 2 * PAGE_BYTES

    def _add_hooks(self) -> None:
        add = hook_function()
        self._hooks: list[ctypes.c_size_t] = []

        def hook(kind: int, callback: int, instruction: int = 0) -> None:
            token = ctypes.c_size_t()
            error = add(
                self._handle,
                ctypes.byref(token),
                kind,
                callback,
                int(self.state.state_at),
                1,
                0,
                instruction,
            )
            self._check(error, f"hook {kind:#x}")
            self._hooks.append(token)

        if not self._flat:
            hook(uc_const.UC_HOOK_TLB_FILL, hooks.on_tlb_fill.address)
        if IS_OWN_BUILD:
            count_blocks(self._handle, self._record, hooks.on_deadline.address)
            set_control(self._handle, int(self.state.state_at), on_control.address)
        else:
            hook(uc_const.UC_HOOK_BLOCK, block_counter_address(hooks.on_deadline.address))
        hook(uc_const.UC_HOOK_INTR, hooks.on_exception.address)
        for instruction, callback in (
            (x86_const.UC_X86_INS_SYSCALL, hooks.on_syscall),
            (x86_const.UC_X86_INS_CPUID, hooks.on_cpuid),
            (x86_const.UC_X86_INS_RDTSC, hooks.on_time_stamp),
            (x86_const.UC_X86_INS_IN, hooks.on_in),
            (x86_const.UC_X86_INS_OUT, hooks.on_out),
        ):
            hook(uc_const.UC_HOOK_INSN, callback.address, instruction)

    # Registers ---------------------------------------------------------------------------------

    def _word(self, offset: int) -> Any:
        self.engine  # noqa: B018  # refuses a processor that is closed: its memory is gone
        return ctypes.c_uint64.from_address(self.registers.base + offset)

    def get(self, name: str) -> int:
        if name == "rflags":
            return int(self.engine.reg_read(x86_const.UC_X86_REG_EFLAGS))
        return int(self._word(choose(reg.OFFSETS, name, what="register")).value)

    def set(self, name: str, value: int) -> None:
        if name == "rflags":
            self.engine.reg_write(x86_const.UC_X86_REG_EFLAGS, value | 2)
        else:
            self._word(choose(reg.OFFSETS, name, what="register")).value = value

    def _segment_at(self, name: str) -> int:
        self.engine  # noqa: B018  # as in _word
        return self.registers.base + choose(reg.SEGMENT_OFFSETS, name, what="segment register")

    def segment(self, name: str) -> SegmentState:
        at = self._segment_at(name)
        read = ctypes.c_uint32.from_address
        return SegmentState(
            read(at).value,
            ctypes.c_uint64.from_address(at + reg.SEGMENT_BASE).value,
            read(at + reg.SEGMENT_LIMIT).value,
            read(at + reg.SEGMENT_FLAGS).value,
        )

    def set_segment(self, name: str, state: SegmentState) -> None:
        at = self._segment_at(name)
        ctypes.c_uint32.from_address(at).value = state.selector
        ctypes.c_uint64.from_address(at + reg.SEGMENT_BASE).value = state.base
        ctypes.c_uint32.from_address(at + reg.SEGMENT_LIMIT).value = state.limit
        ctypes.c_uint32.from_address(at + reg.SEGMENT_FLAGS).value = state.flags

    def set_mode(self, *, long_mode: bool, code64: bool, protected: bool = True) -> None:
        """Set what the translator derives from CS and SS."""
        word = self._word(reg.HFLAGS)
        derived = reg.HF_CS32 | reg.HF_SS32 | reg.HF_CS64 | reg.HF_LMA | reg.HF_PE | reg.HF_ADDSEG
        value = word.value & ~(derived | reg.HF_CPL_MASK)
        value |= reg.HF_CS32 | reg.HF_SS32 | (reg.HF_PE if protected else 0)
        value |= (reg.HF_LMA if long_mode else 0) | (reg.HF_CS64 if code64 else 0)
        word.value = value

    @property
    def privilege_level(self) -> int:
        return int(self._word(reg.HFLAGS).value) & reg.HF_CPL_MASK

    @property
    def in_64_bit_code(self) -> bool:
        return bool(self._word(reg.HFLAGS).value & reg.HF_CS64)

    @property
    def interrupts_enabled(self) -> bool:
        return bool(self.get("rflags") & reg.RFLAGS_IF)

    # Virtual time ------------------------------------------------------------------------------

    @property
    def virtual_ns(self) -> int:
        return int(virtual_now_at(self._state_at))

    @property
    def halted_ns(self) -> int:
        state = self.state
        busy = state.port_accesses * PORT_ACCESS_NS + state.time_stamp_reads * TIME_STAMP_NS
        return int(state.idle_ns - busy)

    def set_quantum(self, nanoseconds: int) -> None:
        self.state.quantum_end_ns = self.virtual_ns + nanoseconds

    def end_quantum(self) -> None:
        self.state.idle_ns += max(int(self.state.quantum_end_ns) - self.virtual_ns, 0)

    # Running -----------------------------------------------------------------------------------

    def drop_stale(self) -> None:
        """Drop what the VMM has made stale since the processor last ran."""
        stale = self.vmm.take_stale()
        if self._flat:
            if stale.ppns.size:
                self.drop_all_code()
            return
        if stale.ppns.size:
            self._drop_code(stale)
        if stale.flush:
            flush_translations_at(self._state_at)

    def _drop_code(self, stale: Stale) -> None:
        flags = self._page_flags
        may_hold_code = stale.shared | (flags[stale.ppns] & EXECUTED != 0)
        for i in np.flatnonzero(may_hold_code).tolist():
            ppn = stale.ppns[i]
            if stale.shared[i] or flags[ppn] & EXECUTED:
                drop_code_at(self._state_at, MachinePageNumber(int(stale.mpns[i])))
                flags[ppn] = 0

    def drop_all_code(self) -> None:
        """Drop all translated code, whatever frame it came from."""
        self._check(library.uc_ctl(self._handle, _TB_FLUSH), "flushing translated code")

    def run(self) -> ProcessorExit:
        self.engine  # noqa: B018  # as in _word
        self.drop_stale()
        self.debugging.prepare()
        return self._exit(int(run_at(self._state_at)))

    def _exit(self, left: int) -> ProcessorExit:
        """What the compiled loop left for, in the words of every processor."""
        state, vmm = self.state, self.vmm.state
        if left == NEED_PAGE:
            ppn = PhysicalPageNumber(int(vmm.exit_ppn))
            return ProcessorExit(ExitReason.NEED_PAGE, ppn=ppn, write=bool(vmm.exit_write))
        if left == run_loop.LEFT_QUANTUM and state.stop_asked:
            state.stop_asked = 0
            return ProcessorExit(ExitReason.STOP_REQUESTED)
        if left == run_loop.LEFT_IO:
            reason = _IO_REASONS.get(int(state.io_status), ExitReason.DEVICE)
            return ProcessorExit(reason, instruction_bytes=int(state.io_instruction_bytes))
        if left == run_loop.LEFT_DEBUG:
            return ProcessorExit(ExitReason.DEBUG, debug=self.debugging.take_stop())
        if left == run_loop.LEFT_TRIPLE_FAULT:
            return ProcessorExit(ExitReason.TRIPLE_FAULT, detail=chain_of(state))
        if left == run_loop.LEFT_NO_FIRMWARE:
            return ProcessorExit(ExitReason.NO_FIRMWARE, vector=int(state.event_vector))
        if left == MISCONFIGURED:
            mmu = vmm.mmu
            where = f"level {mmu.violation_level} for gPA {mmu.violation_gpa:#x}"
            return ProcessorExit(ExitReason.MISCONFIGURED, detail=f"the entry of {where}")
        if left == run_loop.LEFT_ENGINE_ERROR:
            detail = f"error {state.engine_error} at RIP {self.get('rip'):#x}"
            return ProcessorExit(ExitReason.FAILED, detail=detail)
        return ProcessorExit(_PLAIN_REASONS[left])

    def request_stop(self) -> None:
        self.state.stop_asked = 1
        self.state.deadline_code_bytes = 0

    def statistics(self) -> ProcessorStatistics:
        return processor_statistics(self.state, self.virtual_ns)

    def close(self) -> None:
        self._engine_ranges.close()
        self._engine = None  # the binding's finalizer closes it with the last reference


def _exits_enable() -> int:
    return int(uc_const.UC_CTL_UC_USE_EXITS | 1 << 26 | uc_const.UC_CTL_IO_WRITE << 30)


_PLAIN_REASONS = {
    NEED_FRAMES: ExitReason.NEED_FRAMES,
    run_loop.LEFT_QUANTUM: ExitReason.QUANTUM_END,
    run_loop.LEFT_HALTED: ExitReason.HALTED,
}
_IO_REASONS = {IO_BACKDOOR: ExitReason.BACKDOOR, IO_BALLOON: ExitReason.BALLOON}
