# SPDX-License-Identifier: Apache-2.0
"""The engine's register file: where each register lies, and what Unicorn's API does not hand out.

Unicorn keeps the x86 registers in QEMU's CPU state structure (QEMU 5.0, ``target/i386/cpu.h``).
Reading them there costs one load, against some 50 ns through ``uc_reg_read``; and the error code
of an exception, the address of a fault, and the privilege level cannot be had or set otherwise.
``locate_registers`` finds the structure by writing known values through the public API and
looking for them, and checks what lies at a fixed offset the same way; an engine that keeps it
elsewhere is refused with one clear error, never misread. That the engine behaves as it should is
the matter of its version (``version``).
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
from .version import EngineLayoutError

# Offsets in the CPU state structure. Each segment: selector u32, base u64, limit u32, flags u32.
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = (8 * i for i in range(8))
R8, R11 = 8 * 8, 8 * 11
RIP = 0x80
RAW_FLAGS = 0x88  # without the condition codes and DF, which are kept elsewhere
HFLAGS = 0xB0
HFLAGS_2 = HFLAGS + 4
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
_HF_MP_SHIFT = 9  # then EM, TS: copies of CR0 bits 1 to 3
HF_LMA = 1 << 14
HF_CS64 = 1 << 15

# In HFLAGS_2: an NMI is being served. The engine's IRET clears it.
HF2_NMI = 1 << 2

# The engine's TLB notes, per MMU index, the range of its large pages: invalidating one address in
# it flushes all. Three records of this size, each begun by the range's address and mask.
TLB_RECORD_BYTES = 696
MMU_INDEXES = 3
_TLB_ENTRIES_USED = 32  # after the range, and the two words of a window for resizing

# The exception in flight, relative to the error code: with one in flight the engine would turn
# the next into a double fault. Delivery is ours, so it is reset at each exception.
EXCEPTION_IN_FLIGHT = 112
NO_EXCEPTION = -1

RFLAGS_TF = 1 << 8
RFLAGS_IF = 1 << 9
RFLAGS_AC = 1 << 18

MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_FMASK = 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084
MSR_EFER, MSR_KERNEL_GS_BASE = 0xC000_0080, 0xC000_0102

# What the engine has as 0 and a processor does not (SDM vol. 3A table 9-1).
POWER_UP = ((x86_const.UC_X86_REG_MXCSR, 0x1F80), (x86_const.UC_X86_REG_FPCW, 0x40))

# uc_ctl request: drop every cached translation.
CTL_TLB_FLUSH = unicorn_const.UC_CTL_TLB_FLUSH | unicorn_const.UC_CTL_IO_WRITE << 30

_GENERAL = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"] + [
    f"R{i}" for i in range(8, 16)
]
GENERAL_REGISTERS = tuple(name.lower() for name in _GENERAL)
# Where the registers lie that are set and read as words, and the segments.
OFFSETS = {name: 8 * i for i, name in enumerate(GENERAL_REGISTERS)} | {
    "rip": RIP,
    "rflags": RAW_FLAGS,  # its condition codes lie elsewhere: get and set ask the engine
    "cr0": CR0,
    "cr2": CR2,
    "cr3": CR3,
    "cr4": CR4,
    "efer": EFER,
}
SEGMENT_OFFSETS = {
    "es": ES, "cs": CS, "ss": SS, "ds": DS, "fs": FS, "gs": GS,
    "ldtr": LDTR, "tr": TR, "gdtr": GDTR, "idtr": IDTR,
}  # fmt: skip


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
            f"expected {expected:#x}, found {value:#x}"
        )


def locate_registers(engine: unicorn.Uc) -> RegisterFile:
    """Find the register file of ``engine``, a fresh 64-bit x86 engine in TLB_VIRTUAL mode.

    Maps one page at 0 for a moment. Raises EngineLayoutError.
    """
    layout = layout_of(engine._uch)
    if layout is not None:
        found = _from_layout(layout)
        _verify(engine, found.base)
        return found
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
        large_pages = _large_page_records(memory, base)
        fault_address, error_code = _provoke(
            engine, memory, handle, base, msrs["kernel_gs_base"] - base, large_pages
        )
        return RegisterFile(
            base=base,
            large_pages=large_pages,
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


def _check_large_page_records(records: int) -> None:
    """The records count the entries in use: some, once code has run through the TLB."""
    used = sum(
        ctypes.c_uint64.from_address(records + i * TLB_RECORD_BYTES + _TLB_ENTRIES_USED).value
        for i in range(MMU_INDEXES)
    )
    if not 0 < used < 1 << 16:
        raise EngineLayoutError(
            f"the TLB records of this Unicorn build are not where they seem: {used} entries in use"
        )


def _verify(engine: unicorn.Uc, base: int) -> None:
    """Check the fixed offsets against values written through the public API."""

    def write(name: str, value: Any) -> None:
        engine.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), value)

    for name, offset in (("RIP", RIP), ("CR2", CR2), ("CR3", CR3)):
        write(name, 0x7654_3000)
        _check(base, offset, 0x7654_3000, name)
        write(name, 0)
    for name, offset in (("CR0", CR0), ("CR4", CR4)):
        value = engine.reg_read(getattr(x86_const, f"UC_X86_REG_{name}"))
        _check(base, offset, value, name)
    _check(base, EFER, engine.msr_read(MSR_EFER), "EFER")
    for flags in (RFLAGS_AC | RFLAGS_IF | 2, 2):
        write("EFLAGS", flags)
        _check(base, RAW_FLAGS, flags, "RFLAGS")
    _verify_hidden_flags(engine, base)
    for name, offset in (("LDTR", LDTR), ("TR", TR), ("GDTR", GDTR), ("IDTR", IDTR)):
        has_selector = name in ("LDTR", "TR")
        selector, flags = (0x1238, 0x8B00) if has_selector else (0, 0)
        write(name, (selector, 0x5EED_2000, 0x7FF, flags))
        _check(base, offset + SEGMENT_BASE, 0x5EED_2000, f"base of {name}")
        _check(base, offset + SEGMENT_LIMIT, 0x7FF, f"limit of {name}", 4)
        if has_selector:
            _check(base, offset, selector, f"selector of {name}", 4)
            _check(base, offset + SEGMENT_FLAGS, flags, f"flags of {name}", 4)
        write(name, (0, 0, 0, 0))
    for name, offset in (("FS", FS), ("GS", GS)):
        write(f"{name}_BASE", 0x5EED_4000)
        _check(base, offset + SEGMENT_BASE, 0x5EED_4000, f"base of {name}")
        write(f"{name}_BASE", 0)
    for name, offset in (("ES", ES), ("SS", SS), ("DS", DS)):
        write(name, 3)  # a null selector, which may be loaded in 64-bit mode
        _check(base, offset, 3, f"selector of {name}", 4)
        write(name, 0)


def _verify_hidden_flags(engine: unicorn.Uc, base: int) -> None:
    """The hidden flags follow CR0's MP, EM and TS, and say that the code is 64-bit and of CPL 0."""
    mode = HF_CPL_MASK | HF_PE | HF_CS32 | HF_SS32 | HF_LMA | HF_CS64
    cr0 = engine.reg_read(x86_const.UC_X86_REG_CR0)
    word = ctypes.c_uint32.from_address(base + HFLAGS)
    for bits in (0xE, 0):  # TS, EM, MP
        engine.reg_write(x86_const.UC_X86_REG_CR0, cr0 & ~0xE | bits)
        expected = (mode & ~HF_CPL_MASK) | bits << _HF_MP_SHIFT - 1
        found = word.value & (mode | 0xE << _HF_MP_SHIFT - 1)
        if found != expected:
            raise EngineLayoutError(
                f"the hidden flags are not at offset {HFLAGS:#x} of this Unicorn build's register "
                f"file: expected {expected:#x}, found {found:#x}"
            )
    engine.reg_write(x86_const.UC_X86_REG_CR0, cr0)


def _provoke(
    engine: unicorn.Uc, memory: int, handle: int, base: int, after: int, large_pages: int
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
    _check_large_page_records(large_pages)
    engine.hook_del(hook)
    engine.mem_unmap(gpa, 4096)
    return fault_address, error_code
