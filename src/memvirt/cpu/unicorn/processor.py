# SPDX-License-Identifier: Apache-2.0
"""The software processor: one Unicorn engine that uses our page tables and no others."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import unicorn
from unicorn import unicorn_const as uc_const
from unicorn import x86_const
from unicorn.unicorn_py3 import unicorn as unicorn_binding

from memvirt.address import PAGE_BYTES
from memvirt.mmu.control import CONTROL_DTYPE, PAGING_FLAT
from memvirt.vmm.monitor import VirtualMachineMonitor

from . import hooks
from . import registers as reg
from .block_counter import block_counter_address
from .cpuid import cpuid_table
from .guest_memory import access_entry
from .own_build import IS_OWN_BUILD, count_blocks
from .run import drop_code, flush_translations, run

_UC_CTL_TLB_VIRTUAL = uc_const.UC_TLB_VIRTUAL
_TB_FLUSH = uc_const.UC_CTL_TB_FLUSH | uc_const.UC_CTL_IO_WRITE << 30
_library = unicorn_binding.uclib


class ProcessorError(RuntimeError):
    """The engine refused something it was asked; the message says what."""


@dataclass(frozen=True, slots=True)
class SegmentState:
    """A segment register: selector, base address, limit in bytes, descriptor flags."""

    selector: int
    base: int
    limit: int
    flags: int


def _function_address(name: str) -> int:
    return int(ctypes.cast(getattr(_library, name), ctypes.c_void_p).value or 0)


def _hook_function() -> Any:
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_int,
    )
    return prototype(_function_address("uc_hook_add"))


class Processor:
    """The processor of one VM. ``pc_address`` is the host address of the platform's record.

    Not thread-safe; different processors may run on different threads (``run`` releases the
    GIL).
    """

    def __init__(self, vmm: VirtualMachineMonitor, pc_address: int) -> None:
        self.vmm = vmm
        self.control = vmm.control
        self._block = vmm.control_block[0]
        self._flat = vmm.control.paging == PAGING_FLAT
        self._engine: unicorn.Uc | None = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.engine.ctl_set_cpu_model(x86_const.UC_CPU_X86_ICELAKE_SERVER)
        self.engine.ctl_exits_enabled(False)
        self._probe()
        if not self._flat:
            self.engine.ctl_set_tlb_mode(_UC_CTL_TLB_VIRTUAL)
        self._check(_library.uc_ctl(self._handle, _exits_enable(), 1), "exits")
        self._map_memory()
        self._set_up_control(pc_address)
        self._add_hooks()

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
        self.cpuid = cpuid_table(self.engine)
        self.engine.ctl_set_tlb_mode(_UC_CTL_TLB_VIRTUAL)
        self._check(_library.uc_ctl(self._handle, reg.CTL_TLB_FLUSH), "flushing translations")
        self.registers = reg.locate_registers(self.engine)
        self.engine.ctl_set_tlb_mode(uc_const.UC_TLB_CPU)
        self._check(_library.uc_ctl(self._handle, reg.CTL_TLB_FLUSH), "flushing translations")

    def _map_memory(self) -> None:
        """Machine memory as the engine's physical memory, and the two MMIO windows."""
        machine, block = self.vmm.machine, self.control
        address, size = machine.host_address, machine.bytes
        if self._flat:
            address += int(self.vmm.pmap.frame[0]) * PAGE_BYTES
            size = self.vmm.pmap.pages * PAGE_BYTES
        handle, everything = self._handle, uc_const.UC_PROT_ALL
        base = ctypes.c_uint64(0)
        error = _library.uc_mem_map_ptr(
            handle, base, ctypes.c_size_t(size), everything, ctypes.c_void_p(address)
        )
        self._check(error, f"mapping {size:#x} bytes of machine memory")
        windows = [(int(block.lapic_window), hooks.on_apic_read, hooks.on_apic_write)]
        if self._flat:
            windows = [(int(block.lapic_gpa), hooks.on_apic_read, hooks.on_apic_write)]
        else:
            windows.append((int(block.hole_window), hooks.on_hole_read, hooks.on_hole_write))
        user = ctypes.c_void_p(self.vmm.control_block.ctypes.data)
        for start, read, write in windows:
            error = _library.uc_mmio_map(
                handle,
                ctypes.c_uint64(start),
                ctypes.c_size_t(PAGE_BYTES),
                ctypes.c_void_p(read.address),
                user,
                ctypes.c_void_p(write.address),
                user,
            )
            self._check(error, f"mapping the MMIO window at {start:#x}")

    def _set_up_control(self, pc_address: int) -> None:
        block, registers = self.control, self.registers
        self._scratch = np.zeros(96, np.int64)
        block.control_at = self.vmm.control_block.ctypes.data
        block.access_at = access_entry.address
        block.engine = int(ctypes.cast(self._handle, ctypes.c_void_p).value or 0)
        block.registers_at = registers.base
        block.large_pages_at = registers.large_pages
        block.fault_address_at = registers.fault_address
        block.error_code_at = registers.error_code
        block.star_at, block.lstar_at = registers.star, registers.lstar
        block.cstar_at, block.fmask_at = registers.cstar, registers.fmask
        block.kernel_gs_at = registers.kernel_gs_base
        block.emu_start_at = _function_address("uc_emu_start")
        block.emu_stop_at = _function_address("uc_emu_stop")
        block.ctl_at = _function_address("uc_ctl")
        block.reg_read_at = _function_address("uc_reg_read")
        block.reg_write_at = _function_address("uc_reg_write")
        block.rflags_register = x86_const.UC_X86_REG_EFLAGS
        block.scratch_at = self._scratch.ctypes.data
        block.pc_at = pc_address
        block.cpuid_at, block.cpuid_count = self.cpuid.ctypes.data, self.cpuid.size
        block.event_vector = -1

    def _add_hooks(self) -> None:
        add = _hook_function()
        self._hooks: list[ctypes.c_size_t] = []

        def hook(kind: int, callback: int, instruction: int = 0) -> None:
            token = ctypes.c_size_t()
            error = add(
                self._handle,
                ctypes.byref(token),
                kind,
                callback,
                self.vmm.control_block.ctypes.data,
                1,
                0,
                instruction,
            )
            self._check(error, f"hook {kind:#x}")
            self._hooks.append(token)

        if not self._flat:
            hook(uc_const.UC_HOOK_TLB_FILL, hooks.on_tlb_fill.address)
        if IS_OWN_BUILD:
            self._count_blocks()
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

    def _count_blocks(self) -> None:
        """Have memvirt's build of the engine count code bytes in the control block."""
        at = self.vmm.control_block.ctypes.data
        fields = CONTROL_DTYPE.fields
        assert fields is not None
        count, deadline = fields["code_bytes"][1], fields["deadline_code_bytes"][1]
        count_blocks(self._handle, at + count, at + deadline, hooks.on_deadline.address, at)

    # Registers ---------------------------------------------------------------------------------

    def _word(self, offset: int) -> Any:
        return ctypes.c_uint64.from_address(self.registers.base + offset)

    def get(self, name: str) -> int:
        """A register by its lower-case name: rax ... r15, rip, rflags, cr0, cr2, cr3, cr4, efer."""
        if name == "rflags":
            return int(self.engine.reg_read(x86_const.UC_X86_REG_EFLAGS))
        return int(self._word(_OFFSETS[name]).value)

    def set(self, name: str, value: int) -> None:
        """Set a register by name, while the processor is stopped."""
        if name == "rflags":
            self.engine.reg_write(x86_const.UC_X86_REG_EFLAGS, value | 2)
        else:
            self._word(_OFFSETS[name]).value = value

    def segment(self, name: str) -> SegmentState:
        """A segment or descriptor table register by lower-case name (cs, tr, gdtr, ...)."""
        at = self.registers.base + _SEGMENT_OFFSETS[name]
        read = ctypes.c_uint32.from_address
        return SegmentState(
            read(at).value,
            ctypes.c_uint64.from_address(at + reg.SEGMENT_BASE).value,
            read(at + reg.SEGMENT_LIMIT).value,
            read(at + reg.SEGMENT_FLAGS).value,
        )

    def set_segment(self, name: str, state: SegmentState) -> None:
        at = self.registers.base + _SEGMENT_OFFSETS[name]
        ctypes.c_uint32.from_address(at).value = state.selector
        ctypes.c_uint64.from_address(at + reg.SEGMENT_BASE).value = state.base
        ctypes.c_uint32.from_address(at + reg.SEGMENT_LIMIT).value = state.limit
        ctypes.c_uint32.from_address(at + reg.SEGMENT_FLAGS).value = state.flags

    def set_hidden_flags(self, *, long_mode: bool, code64: bool, protected: bool = True) -> None:
        """Set what the translator derives from CS and SS, for CPL 0 and flat segments."""
        hidden = ctypes.c_uint32.from_address(self.registers.base + reg.HFLAGS)
        derived = reg.HF_CS32 | reg.HF_SS32 | reg.HF_CS64 | reg.HF_LMA | reg.HF_PE | reg.HF_ADDSEG
        value = hidden.value & ~(derived | reg.HF_CPL_MASK)
        value |= reg.HF_CS32 | reg.HF_SS32 | (reg.HF_PE if protected else 0)
        value |= (reg.HF_LMA if long_mode else 0) | (reg.HF_CS64 if code64 else 0)
        hidden.value = value

    @property
    def privilege_level(self) -> int:
        return int(self._word(reg.HFLAGS).value) & reg.HF_CPL_MASK

    @property
    def in_64_bit_code(self) -> bool:
        return bool(self._word(reg.HFLAGS).value & reg.HF_CS64)

    # Running -----------------------------------------------------------------------------------

    def drop_stale(self) -> None:
        """Drop what the VMM has made stale since the processor last ran."""
        stale = self.vmm.take_stale()
        if self._flat:
            if stale.code:
                self.drop_all_code()
            return
        for mpn in stale.code:
            drop_code(self._block, mpn)
        if stale.flush:
            flush_translations(self._block)

    def drop_all_code(self) -> None:
        """Drop all translated code, whatever frame it came from."""
        self._check(_library.uc_ctl(self._handle, _TB_FLUSH), "flushing translated code")

    def run(self, pc: Any) -> int:
        """Run until Python is needed; returns the reason (see cpu.run and mmu.control)."""
        self.drop_stale()
        return int(run(self._block, pc))

    def request_stop(self) -> None:
        """Ask a processor that is running on another thread to leave at the next block."""
        self.control.stop_asked = 1
        self.control.deadline_code_bytes = 0

    def close(self) -> None:
        """Release the engine; the processor cannot be used any more."""
        self._engine = None  # the binding's finalizer closes it with the last reference


def _exits_enable() -> int:
    return int(uc_const.UC_CTL_UC_USE_EXITS | 1 << 26 | uc_const.UC_CTL_IO_WRITE << 30)


_OFFSETS = {name: 8 * i for i, name in enumerate(reg.GENERAL_REGISTERS)} | {
    "rip": reg.RIP,
    "cr0": reg.CR0,
    "cr2": reg.CR2,
    "cr3": reg.CR3,
    "cr4": reg.CR4,
    "efer": reg.EFER,
}
_SEGMENT_OFFSETS = {
    "es": reg.ES, "cs": reg.CS, "ss": reg.SS, "ds": reg.DS, "fs": reg.FS, "gs": reg.GS,
    "ldtr": reg.LDTR, "tr": reg.TR, "gdtr": reg.GDTR, "idtr": reg.IDTR,
}  # fmt: skip
