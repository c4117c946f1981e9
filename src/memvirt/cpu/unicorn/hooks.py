# SPDX-License-Identifier: Apache-2.0
"""The C callbacks through which the engine reaches the MMU and the platform.

Each is compiled for C (``callback``), takes no lock and never enters Python. ``user`` is the
address of the engine's state. A callback that cannot finish says why there and stops the engine;
the run loop goes on from there.
"""

from __future__ import annotations

from numba import types
from unicorn import unicorn_const

from memvirt.address import GuestVirtualAddress
from memvirt.compiled import callback, compiled
from memvirt.mmu.access import FETCH, OK, READ, WRITE
from memvirt.mmu.entry import CR0_PE
from memvirt.mmu.native import (
    argument_reference,
    call_c1,
    load32,
    load64,
    store32,
    store64,
)
from memvirt.platform.control import PORT_POST
from memvirt.platform.ioapic import io_apic_read
from memvirt.platform.lapic import BASE_ENABLE
from memvirt.platform.pc import PcState, mmio_read, mmio_write, pc_io_apic_write
from memvirt.platform.pc import pc_interrupt_pending as interrupt_pending
from memvirt.platform.ports import (
    IO_BACKDOOR,
    IO_OK,
    io_call,
    io_read,
    io_write,
)
from memvirt.state_record import Record

from . import registers as reg
from .abort import abort_instruction
from .engine_state import INSTRUCTION, PERMISSIONS, EngineState, engine_at, mmu_of, pc_at
from .events import VECTOR_GP
from .guest_memory import read_guest
from .segments import load_control
from .tlb_fill import PERMIT_EXECUTE, PERMIT_READ, fill
from .virtual_time import PORT_ACCESS_NS, TIME_STAMP_NS, charge, virtual_now

_UC_WRITE, _UC_FETCH = unicorn_const.UC_MEM_WRITE, unicorn_const.UC_MEM_FETCH
_HFLAGS, _RAW_FLAGS = reg.HFLAGS, reg.RAW_FLAGS
_RIP = reg.RIP
_RAX, _RBX, _RCX, _RDX = reg.RAX, reg.RBX, reg.RCX, reg.RDX
_U32 = 0xFFFF_FFFF
_STOPPED_STARTS = 3  # in a row, before a block may begin although its time is up


class TlbEntry(Record):
    """The engine's ``uc_tlb_entry``: its 32-bit permissions are followed by as much padding."""

    paddr: int
    permissions: int


tlb_entry_at = argument_reference(TlbEntry)


@compiled
def stop(engine: EngineState) -> None:
    """Ask the engine to stop before the next block."""
    call_c1(engine.emu_stop_at, (engine.handle,))


@compiled
def interrupts_enabled(engine: EngineState) -> bool:
    """True if the processor would take an external interrupt now."""
    if load64(engine.registers_at + _RAW_FLAGS) & reg.RFLAGS_IF == 0:
        return False
    return load32(engine.registers_at + _HFLAGS) & reg.HF_INHIBIT_IRQ == 0


@compiled
def takes_nmi(engine: EngineState, pc: PcState) -> bool:
    """True if an NMI waits and the processor would take it now: not in the shadow of a load of SS,
    and not before the IRET of the last one (SDM vol. 3A section 6.7.1)."""
    if pc.lapic.nmi_pending == 0:
        return False
    if load32(engine.registers_at + reg.HFLAGS_2) & reg.HF2_NMI:
        return False
    return load32(engine.registers_at + _HFLAGS) & reg.HF_INHIBIT_IRQ == 0


@compiled
def note_large_page(engine: EngineState, gva: GuestVirtualAddress, size: int) -> None:
    """Tell the engine's TLB that a page it caches is part of a large one.

    ``invlpg`` of any address in a large page must drop all of it (SDM vol. 3A section 4.10.4.1),
    but our fills are of 4 KiB. The range kept is the smallest aligned one over all large pages.
    """
    for index in range(reg.MMU_INDEXES):
        record = engine.large_pages_at + index * reg.TLB_RECORD_BYTES
        address, mask = load64(record), -size
        if address == -1:
            address = gva
        else:
            kept = load64(record + 8)
            if (address ^ gva) & kept == 0 and kept & mask == kept:
                continue
            mask &= kept
            while (address ^ gva) & mask != 0:
                mask <<= 1
        store64(record, address & mask)
        store64(record + 8, mask)


@callback("boolean(int64, int64, int32, int64, int64)")
def on_tlb_fill(handle: int, page: GuestVirtualAddress, kind: int, entry: int, user: int) -> bool:
    """``UC_HOOK_TLB_FILL``: ``entry`` is the address of a ``TlbEntry``."""
    translation = tlb_entry_at(entry)
    engine = engine_at(user)
    mmu = mmu_of(engine)
    if engine.aborted:
        return False
    if engine.identity_window:
        translation.paddr, translation.permissions = page, PERMIT_READ | PERMIT_EXECUTE
        return True
    load_control(engine)
    access = WRITE if kind == _UC_WRITE else (FETCH if kind == _UC_FETCH else READ)
    status = fill(engine, page, access)
    if status == OK:
        if mmu.out_large_page:
            note_large_page(engine, page, mmu.out_large_page)
        translation.paddr = mmu.out_machine_address & ~0xFFF
        translation.permissions = mmu.out_permissions
        return True
    engine.translation_status = status
    engine.fault_gva = page
    engine.fault_access = access
    return False


@callback("void(int64, int64, int32, int64)")
def on_deadline(handle: int, gva: GuestVirtualAddress, size: int, user: int) -> None:
    """``UC_HOOK_BLOCK``, when virtual time has come (``block_counter``): stop, or go on until an
    interrupt can be taken."""
    engine = engine_at(user)
    # Stopped starts in a row charge time and run nothing: after a few of them a block may begin
    # whatever the time, or a deadline that is nearer than its end would stop the guest for ever.
    again = engine.code_bytes == engine.stopped_code_bytes + size
    overdue = again and engine.stopped_starts >= _STOPPED_STARTS
    if engine.stop_asked == 0 and (overdue or engine.code_bytes < engine.time_deadline):
        if engine.flush_owed:
            may_begin = engine.flush_owed > 1
            engine.flush_owed = 1  # owed until the run loop has done it
            if may_begin and (gva + size <= engine.owed_first or gva > engine.owed_last | 0xFFF):
                return
        elif engine.interrupt_waiting:
            if not interrupts_enabled(engine) and not takes_nmi(engine, pc_at(engine.pc_at)):
                return
        elif overdue:
            return
    engine.stopped_starts = engine.stopped_starts + 1 if again else 1
    engine.stopped_code_bytes = engine.code_bytes
    engine.stop_time = 1
    call_c1(engine.emu_stop_at, (handle,))


@callback("void(int64, int32, int64)")
def on_exception(handle: int, vector: int, user: int) -> None:
    """``UC_HOOK_INTR``: an exception or ``int n``; its error code lies in the register file."""
    engine = engine_at(user)
    if engine.aborted == 0:  # else it never happened: the rest of the block will be done again
        engine.stop_vector = vector
        engine.event_error = load32(engine.error_code_at)
        engine.event_is_software = load32(engine.error_code_at + 4) != 0
    store32(engine.error_code_at + reg.EXCEPTION_IN_FLIGHT, reg.NO_EXCEPTION)
    call_c1(engine.emu_stop_at, (handle,))


@callback("void(int64, int64)")
def on_syscall(handle: int, user: int) -> None:
    """``UC_HOOK_INSN`` for ``syscall``."""
    engine = engine_at(user)
    if engine.aborted == 0:
        engine.stop_syscall = 1
    call_c1(engine.emu_stop_at, (handle,))


@callback("int32(int64, int64)")
def on_cpuid(handle: int, user: int) -> int:
    """``UC_HOOK_INSN`` for ``cpuid``: the VM's own table; 1 skips the engine's answer."""
    engine = engine_at(user)
    state = engine.registers_at
    leaf, subleaf = load64(state + _RAX) & _U32, load64(state + _RCX) & _U32
    engine.cpuid_reads += 1
    a = b = c = d = 0
    for row in range(engine.cpuid_count):
        at = engine.cpuid_at + row * 48
        wanted = load64(at + 8)
        if load64(at) == leaf and (wanted == subleaf or wanted < 0):
            a, b, c, d = load64(at + 16), load64(at + 24), load64(at + 32), load64(at + 40)
            break
    if leaf == 1:
        if load64(state + reg.CR4) & (1 << 18):
            c |= 1 << 27  # OSXSAVE mirrors CR4
        if pc_at(engine.pc_at).lapic.base_msr & BASE_ENABLE == 0:
            d &= ~(1 << 9)  # APIC mirrors IA32_APIC_BASE
    store64(state + _RAX, a)
    store64(state + _RBX, b)
    store64(state + _RCX, c)
    store64(state + _RDX, d)
    return 1


@callback("int32(int64, int64)")
def on_time_stamp(handle: int, user: int) -> int:
    """``UC_HOOK_INSN`` for ``rdtsc``: virtual time."""
    engine = engine_at(user)
    engine.time_stamp_reads += 1
    charge(engine, TIME_STAMP_NS)
    now = virtual_now(engine) + engine.time_stamp_offset
    store64(engine.registers_at + _RAX, now & _U32)
    store64(engine.registers_at + _RDX, (now >> 32) & _U32)
    return 1


@compiled
def _after_device(engine: EngineState) -> None:
    """A device register was touched: deadlines and interrupt lines may differ now."""
    engine.deadline_code_bytes = 0
    engine.time_deadline = 0


@compiled
def _port_permitted(engine: EngineState, port: int, size: int) -> bool:
    """True if the instruction may go on; else it has been aborted, with its fate decided.

    Below IOPL the TSS's I/O permission bitmap decides (SDM vol. 1 section 19.5.2).
    """
    if engine.aborted:
        return False
    state, mmu = engine.registers_at, mmu_of(engine)
    load_control(engine)
    iopl = (load64(state + _RAW_FLAGS) >> 12) & 3
    if mmu.cr0 & CR0_PE == 0 or mmu.cpl <= iopl:
        return True
    base, limit = load64(state + reg.TR + reg.SEGMENT_BASE), load32(state + reg.TR + 16)
    bits_at = engine.state_at + PERMISSIONS
    mmu.implicit_supervisor = 1
    status, denied = OK, limit < 103
    if not denied:
        status = read_guest(engine, GuestVirtualAddress(base + 0x66), bits_at, 2)
        offset = (engine.permissions & 0xFFFF) + (port >> 3)
        denied = status == OK and offset + 1 > limit
        if status == OK and not denied:
            status = read_guest(engine, GuestVirtualAddress(base + offset), bits_at, 2)
            bits = (engine.permissions & 0xFFFF) >> (port & 7)
            denied = bits & ((1 << size) - 1) != 0
    mmu.implicit_supervisor = 0
    if status == OK and not denied:
        return True
    if status == OK:
        engine.translation_status = OK
        engine.stop_vector = VECTOR_GP
        engine.event_error = 0
        engine.event_is_software = 0
    abort_instruction(engine)
    return False


@compiled
def _instruction_bytes(engine: EngineState) -> int:
    """Length of the IN at RIP: it ends with its opcode (0xED). 0 with ``translation_status`` set.

    The prefixes of such an IN (operand size in 16-bit code, REX) never have the opcode's value.
    """
    state = engine.registers_at
    start = load64(state + _RIP)
    if load32(state + _HFLAGS) & reg.HF_CS64 == 0:
        start = (start + load64(state + reg.CS + reg.SEGMENT_BASE)) & _U32
    for length in range(1, 16):
        gva = GuestVirtualAddress(start + length - 1)
        status = read_guest(engine, gva, engine.state_at + INSTRUCTION, 1)
        if status != OK:
            return 0
        if engine.instruction & 0xFF == 0xED:
            return length
    return 1  # unreachable: the processor has just decoded it


@compiled
def _call_hypervisor(engine: EngineState, kind: int, port: int) -> None:
    """Abort an IN that Python completes, with its registers and length known.

    As on VMware, the backdoor answers in ring 3 whatever IOPL says; the balloon does not.
    """
    if engine.aborted:
        return
    load_control(engine)
    if kind != IO_BACKDOOR and not _port_permitted(engine, port, 4):
        return
    engine.io_instruction_bytes = _instruction_bytes(engine)
    if engine.io_instruction_bytes:
        engine.port_accesses += 1
        charge(engine, PORT_ACCESS_NS)
        engine.io_status = kind
    abort_instruction(engine)


@callback("uint32(int64, uint32, int32, int64)")
def on_in(handle: int, port: int, size: int, user: int) -> int:
    """``UC_HOOK_INSN`` for ``in``."""
    engine = engine_at(user)
    pc = pc_at(engine.pc_at)
    port64, size64 = types.int64(port), types.int64(size)
    kind = io_call(port64, size64, load64(engine.registers_at + _RAX) & _U32)
    if kind != IO_OK:
        _call_hypervisor(engine, kind, port64)
        return types.uint32(0)
    if not _port_permitted(engine, port64, size64):
        return types.uint32(0)
    engine.port_accesses += 1
    charge(engine, PORT_ACCESS_NS)
    value = io_read(pc, port64, size64, virtual_now(engine))
    if interrupt_pending(pc) != (engine.interrupt_waiting != 0):
        _after_device(engine)
    return types.uint32(value & _U32)


@callback("void(int64, uint32, int32, uint32, int64)")
def on_out(handle: int, port: int, size: int, value: int, user: int) -> None:
    """``UC_HOOK_INSN`` for ``out``. A write the device cannot take yet is done again later."""
    engine = engine_at(user)
    pc = pc_at(engine.pc_at)
    port64, size64 = types.int64(port), types.int64(size)
    if not _port_permitted(engine, port64, size64):
        return
    engine.port_accesses += 1
    charge(engine, PORT_ACCESS_NS)
    status = io_write(pc, port64, size64, types.int64(value), virtual_now(engine))
    if status != IO_OK:
        # The console is full: it happens again. Or the guest has ended: nothing happens after it,
        # not even the rest of its block.
        engine.io_status = status
        abort_instruction(engine)
    if port64 != PORT_POST or size64 != 1:  # a latch: Linux writes to it to pass time
        _after_device(engine)


@callback("uint64(int64, uint64, uint32, int64)")
def on_apic_read(handle: int, offset: int, size: int, user: int) -> int:
    """A load from the local APIC's page."""
    engine = engine_at(user)
    pc = pc_at(engine.pc_at)
    engine.mmio_accesses += 1
    value = mmio_read(pc, types.int64(offset), types.int64(size), virtual_now(engine))
    return types.uint64(value)


@callback("void(int64, uint64, uint32, uint64, int64)")
def on_apic_write(handle: int, offset: int, size: int, value: int, user: int) -> None:
    """A store to the local APIC's page."""
    engine = engine_at(user)
    pc = pc_at(engine.pc_at)
    engine.mmio_accesses += 1
    word = types.int64(value) & _U32
    mmio_write(pc, types.int64(offset), types.int64(size), word, virtual_now(engine))
    _after_device(engine)


@callback("uint64(int64, uint64, uint32, int64)")
def on_io_apic_read(handle: int, offset: int, size: int, user: int) -> int:
    """A load from the I/O APIC's page."""
    engine = engine_at(user)
    engine.mmio_accesses += 1
    return types.uint64(io_apic_read(pc_at(engine.pc_at).io_apic, types.int64(offset)))


@callback("void(int64, uint64, uint32, uint64, int64)")
def on_io_apic_write(handle: int, offset: int, size: int, value: int, user: int) -> None:
    """A store to the I/O APIC's page."""
    engine = engine_at(user)
    engine.mmio_accesses += 1
    pc_io_apic_write(pc_at(engine.pc_at), types.int64(offset), types.int64(value) & _U32)
    _after_device(engine)


@callback("uint64(int64, uint64, uint32, int64)")
def on_hole_read(handle: int, offset: int, size: int, user: int) -> int:
    """A load where no device answers: the open bus reads as ones."""
    return types.uint64(0xFFFF_FFFF_FFFF_FFFF)


@callback("void(int64, uint64, uint32, uint64, int64)")
def on_hole_write(handle: int, offset: int, size: int, value: int, user: int) -> None:
    """A store where no device answers goes nowhere."""
