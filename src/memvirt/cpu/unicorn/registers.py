# SPDX-License-Identifier: Apache-2.0
"""The engine's register file: where each register lies, and what Unicorn's API does not hand out.

Unicorn keeps the x86 registers in QEMU's CPU state structure (QEMU 5.0, ``target/i386/cpu.h``).
Reading them there costs one load, against some 50 ns through ``uc_reg_read``; and the error code
of an exception, the address of a fault, and the privilege level cannot be had or set otherwise.
``locate_registers`` finds the structure by writing known values through the public API and
looking for them, and checks every offset the same way; an engine that keeps them elsewhere is
refused with one clear error, never misread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from dataclasses import dataclass
from typing import Any

import unicorn
from unicorn import unicorn_const, x86_const

from .own_build import Layout, layout_of

# Offsets in the CPU state structure. Each segment: selector u32, base u64, limit u32, flags u32.
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = (8 * i for i in range(8))
R8, R11 = 8 * 8, 8 * 11
RIP = 0x80
RAW_FLAGS = 0x88  # without the condition codes and DF, which are kept elsewhere
HFLAGS = 0xB0
SEGMENTS = 0xB8
SEGMENT_BYTES = 24
ES, CS, SS, DS, FS, GS, LDTR, TR, GDTR, IDTR = (SEGMENTS + SEGMENT_BYTES * i for i in range(10))
SEGMENT_BASE, SEGMENT_LIMIT, SEGMENT_FLAGS = 8, 16, 20
CR0 = 0x1A8
CR2, CR3, CR4 = CR0 + 16, CR0 + 24, CR0 + 32
EFER = 0x250

# Hidden flags that the translator keys its code on.
HF_CPL_MASK = 3
HF_INHIBIT_IRQ = 1 << 3
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6
HF_PE = 1 << 7
HF_LMA = 1 << 14
HF_CS64 = 1 << 15

# The engine's TLB notes, per MMU index, the range of its large pages: invalidating one address in
# it flushes all. Three records of this size, each begun by the range's address and mask.
TLB_RECORD_BYTES = 696
MMU_INDEXES = 3

# The exception in flight, relative to the error code: with one in flight the engine would turn
# the next into a double fault. Delivery is ours, so it is reset at each exception.
EXCEPTION_IN_FLIGHT = 112
NO_EXCEPTION = -1

RFLAGS_IF = 1 << 9
RFLAGS_AC = 1 << 18

MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_FMASK = 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084
MSR_EFER, MSR_KERNEL_GS_BASE = 0xC000_0080, 0xC000_0102

# uc_ctl request: drop every cached translation.
CTL_TLB_FLUSH = unicorn_const.UC_CTL_TLB_FLUSH | unicorn_const.UC_CTL_IO_WRITE << 30

_GENERAL = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"] + [
    f"R{i}" for i in range(8, 16)
]
GENERAL_REGISTERS = tuple(name.lower() for name in _GENERAL)


class EngineLayoutError(RuntimeError):
    """The installed Unicorn keeps its registers where memvirt does not expect them."""


@dataclass(frozen=True, slots=True)
class RegisterFile:
    """Host addresses inside one engine. ``error_code`` is followed by the is-``int`` flag."""

    base: int
    fault_address: int
    error_code: int
    star: int
    lstar: int
    cstar: int
    fmask: int
    kernel_gs_base: int
    large_pages: int


def _peek(memory: int, address: int, count: int) -> bytes:
    """Up to ``count`` bytes of this process at ``address``; fewer, or none, if not mapped."""
    try:
        return os.pread(memory, count, address)
    except (OSError, OverflowError):
        return b""


def _find_state(memory: int, engine: int, pattern: bytes) -> int:
    handle = _peek(memory, engine, 8192)
    for offset in range(0, len(handle) - 7, 8):
        pointer = struct.unpack_from("<Q", handle, offset)[0]
        if pointer & 7 or not 1 << 16 < pointer < 1 << 47:
            continue
        found = _peek(memory, pointer, 1 << 18).find(pattern)
        if found >= 0:
            return int(pointer + found)
    raise EngineLayoutError("the register file of this Unicorn build was not found")


def _offset(blob: bytes, pattern: bytes, what: str, start: int = 0) -> int:
    found = blob.find(pattern, start)
    if found < 0:
        raise EngineLayoutError(f"{what} was not found in the register file of this Unicorn build")
    return found


def _check(base: int, offset: int, expected: int, what: str, size: int = 8) -> None:
    kind: Any = ctypes.c_uint64 if size == 8 else ctypes.c_uint32
    value = kind.from_address(base + offset).value
    if value != expected:
        raise EngineLayoutError(
            f"{what} is not at offset {offset:#x} of this Unicorn build's register file: "
            f"expected {expected:#x}, found {value:#x}; memvirt supports unicorn 2.1.x"
        )


def locate_registers(engine: unicorn.Uc) -> RegisterFile:
    """Find the register file of ``engine``, a fresh 64-bit x86 engine in TLB_VIRTUAL mode.

    Maps one page at 0 for a moment. Raises EngineLayoutError.
    """
    layout = layout_of(engine._uch)
    if layout is not None:
        return _from_layout(layout)
    handle = int(ctypes.cast(engine._uch, ctypes.c_void_p).value or 0)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        # Unique to this call: memory that a closed engine gave back may hold older values.
        values = list(struct.unpack("<16Q", os.urandom(128)))
        for name, value in zip(_GENERAL, values, strict=True):
            engine.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), value)
        base = _find_state(memory, handle, struct.pack("<16Q", *values))
        for name in _GENERAL:
            engine.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), 0)
        _verify(engine, base)
        msrs = {}
        for name, msr in (
            ("star", MSR_STAR),
            ("lstar", MSR_LSTAR),
            ("cstar", MSR_CSTAR),
            ("fmask", MSR_FMASK),
            ("kernel_gs_base", MSR_KERNEL_GS_BASE),
        ):
            magic = 0x5EED_ABCD_0000_1000 + msr
            engine.msr_write(msr, magic)
            blob = _peek(memory, base, 0x8000)
            msrs[name] = base + _offset(blob, struct.pack("<Q", magic), f"MSR {msr:#x}")
            engine.msr_write(msr, 0)
        fault_address, error_code = _provoke(
            engine, memory, handle, base, msrs["kernel_gs_base"] - base
        )
        return RegisterFile(
            base=base,
            large_pages=_large_page_records(memory, base),
            fault_address=fault_address,
            error_code=error_code,
            **msrs,
        )
    finally:
        os.close(memory)


def _from_layout(layout: Layout) -> RegisterFile:
    """The register file as memvirt's own build states it, if compiled kernels agree with it."""
    for name, expected in (
        ("rip", RIP),
        ("flags", RAW_FLAGS),
        ("hidden_flags", HFLAGS),
        ("segments", SEGMENTS),
        ("segment_bytes", SEGMENT_BYTES),
        ("cr0", CR0),
        ("cr2", CR2),
        ("cr3", CR3),
        ("cr4", CR4),
        ("efer", EFER),
        ("tlb_record_bytes", TLB_RECORD_BYTES),
        ("mmu_indexes", MMU_INDEXES),
        ("exception_in_flight", EXCEPTION_IN_FLIGHT),
    ):
        stated = int(getattr(layout, name))
        if stated != expected:
            raise EngineLayoutError(
                f"memvirt's build of the engine states {stated:#x} as {name}, and memvirt expects "
                f"{expected:#x}: run make engine"
            )
    return RegisterFile(
        base=layout.registers,
        large_pages=layout.large_pages,
        fault_address=layout.fault_address,
        error_code=layout.error_code,
        star=layout.star,
        lstar=layout.lstar,
        cstar=layout.cstar,
        fmask=layout.fmask,
        kernel_gs_base=layout.kernel_gs_base,
    )


def _large_page_records(memory: int, base: int) -> int:
    """Address of the TLB's large-page records, which lie somewhere before the registers.

    A fresh TLB has no range (all ones), no entries in use, and victims of all ones.
    """
    start = base - 0x1800
    blob = _peek(memory, start, 0x1800)
    ones = (1 << 64) - 1
    for offset in range(0, len(blob) - MMU_INDEXES * TLB_RECORD_BYTES, 8):
        records = [
            struct.unpack_from("<9Q", blob, offset + i * TLB_RECORD_BYTES)
            for i in range(MMU_INDEXES)
        ]
        if all((*r[:2], *r[4:9]) == (ones, ones, 0, 0, ones, ones, ones) for r in records):
            return start + offset
    raise EngineLayoutError("the TLB records of this Unicorn build were not found")


def _verify(engine: unicorn.Uc, base: int) -> None:
    """Check the fixed offsets against values written through the public API."""
    engine.reg_write(x86_const.UC_X86_REG_RIP, 0x1234_5000)
    _check(base, RIP, 0x1234_5000, "RIP")
    for name, offset in (("CR0", CR0), ("CR3", CR3), ("CR4", CR4)):
        value = engine.reg_read(getattr(x86_const, f"UC_X86_REG_{name}"))
        _check(base, offset, value, name)
    engine.reg_write(x86_const.UC_X86_REG_CR3, 0x7654_3000)
    _check(base, CR3, 0x7654_3000, "CR3")
    engine.reg_write(x86_const.UC_X86_REG_CR3, 0)
    _check(base, EFER, engine.msr_read(MSR_EFER), "EFER")
    for name, offset in (("GDTR", GDTR), ("IDTR", IDTR)):
        engine.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), (0, 0x5EED_2000, 0x7FF, 0))
        _check(base, offset + SEGMENT_BASE, 0x5EED_2000, f"base of {name}")
        _check(base, offset + SEGMENT_LIMIT, 0x7FF, f"limit of {name}", 4)
    engine.reg_write(x86_const.UC_X86_REG_FS_BASE, 0x5EED_4000)
    _check(base, FS + SEGMENT_BASE, 0x5EED_4000, "base of FS")
    engine.reg_write(x86_const.UC_X86_REG_FS_BASE, 0)


def _provoke(
    engine: unicorn.Uc, memory: int, handle: int, base: int, after: int
) -> tuple[int, int]:
    """Raise a page fault and a #GP, to see where their address and error code are kept.

    The error code lies somewhere behind offset ``after``.
    """
    gpa = 0x10_0000
    absent, selector = 0x5EED_1237, 0xABC8
    code = (
        b"\xa0" + struct.pack("<Q", absent)  # mov al, [absent]
        + b"\x66\xb8" + struct.pack("<H", selector) + b"\x8e\xd8"  # mov ax, imm; mov ds, ax
    )  # fmt: skip

    def fill(uc: Any, address: int, access: int, entry: Any, data: Any) -> bool:
        entry.paddr, entry.perms = address, unicorn.UC_PROT_ALL
        return bool(address == gpa)

    engine.mem_map(gpa, 4096)
    engine.mem_write(gpa, code)
    hook = engine.hook_add(unicorn.UC_HOOK_TLB_FILL, fill)
    blob_before = b""
    try:
        engine.emu_start(gpa, 0)
    except unicorn.UcError:
        blob_before = _peek(memory, handle, 8192)
    fault_address = handle + _offset(blob_before, struct.pack("<Q", absent), "the fault address")
    engine.reg_write(x86_const.UC_X86_REG_GDTR, (0, 0, 0, 0))
    with contextlib.suppress(unicorn.UcError):
        engine.emu_start(gpa + 9, 0)
    pattern = struct.pack("<Ii", selector, 0)  # error code, then "caused by an int instruction"
    state = _peek(memory, base, 0x8000)
    error_code = base + _offset(state, pattern, "the error code", after)
    _check(error_code, EXCEPTION_IN_FLIGHT, 13, "the exception in flight", 4)
    ctypes.c_int32.from_address(error_code + EXCEPTION_IN_FLIGHT).value = NO_EXCEPTION
    engine.hook_del(hook)
    engine.mem_unmap(gpa, 4096)
    return fault_address, error_code
